"""The bits that every model learns are those of tests/fits.json: a change that should keep them is held to it.

A change that means to give others records them anew: python tests/support/fits.py --record
"""

import json

import numpy as np
import pytest
import shim
from support import fits

pytest.importorskip("numba")
pytest.importorskip("safetensors")
pytest.importorskip("scipy")


def assert_recorded(section):
    """Fits in a process of its own, whose instruction set is chosen once; skips the test where none are recorded."""
    solved = fits.run(section)
    if section in fits.ISAS and solved["isa"] != section:
        pytest.skip(f"this machine has {solved['isa']} at most")
    recorded = json.loads(fits.RECORDED.read_text())["probes"].get(solved["probe"], {}).get(section)
    if recorded is None:
        pytest.skip(f"no fits are recorded for {solved['probe']}: on a commit that is right, {fits.RECORD}")
    found = solved["checksums"]
    assert found.keys() == recorded.keys(), f"fits and record differ in names; {fits.RECORD}"
    changed = [name for name in found if found[name] != recorded[name]]
    assert not changed, f"{len(changed)} of {len(found)} fits of {section} have other bits: {'; '.join(changed)}"


@pytest.mark.parametrize("isa", fits.ISAS)
def test_fits_on_an_instruction_set(isa):
    assert_recorded(isa)


def test_fits_that_no_instruction_set_touches():
    assert_recorded("host")


def test_fits_of_networks():
    for name in ("torch", "PIL", "sklearn"):
        pytest.importorskip(name)
    assert_recorded("networks")


def test_fits_on_the_device_kernels_as_cpp():
    shim.build()  # or skips the test
    assert_recorded("shim")


def test_fits_on_the_device_kernels_as_ptx():
    shim.build()
    if fits.find_nvcc() is None:
        pytest.skip("there is no nvcc")
    assert_recorded("ptx")


def test_checksums_tell_values_names_and_shapes():
    rows = np.arange(6, dtype=np.float32)
    same = fits.checksum({"rows": rows, "keys": ["a", "b"]})
    assert same == fits.checksum({"keys": ["a", "b"], "rows": rows.copy()})
    nearly = rows.copy()
    nearly[5] = np.nextafter(nearly[5], np.float32(9))
    for other in ({"rows": nearly}, {"rows": rows.reshape(2, 3)}, {"rows": rows.astype(np.float64)}, {"keys": ["ab"]}):
        assert fits.checksum({"rows": rows, "keys": ["a", "b"], **other}) != same
    with pytest.raises(ValueError, match="rows: expected finite numbers"):
        fits.checksum({"rows": rows * np.nan})
