"""The setting `device` of torch models: its values, "auto", several processes, and devices that are missing."""

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install embfast[images]")

from embfast.device.torch import torch_device

CPU = torch.device("cpu")


@pytest.fixture
def without_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("LOCAL_RANK", raising=False)


@pytest.fixture
def two_gpus(monkeypatch):
    """Two devices that torch lists; computing on them is simulated."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device.index or 0}")
    monkeypatch.setattr(torch, "zeros", lambda *sizes, device: torch.ones(*sizes))
    monkeypatch.delenv("LOCAL_RANK", raising=False)


@pytest.mark.parametrize("name", [None, "", "gpu", "mps", "cuda:", "cuda:x", "cuda:-1", 0, torch.device("meta")])
def test_other_names_are_refused(name):
    with pytest.raises(ValueError, match='device must be "cpu", "cuda", "cuda:1" and so on, or "auto", got'):
        torch_device(name)


def test_cpu_says_nothing(two_gpus, capsys):
    assert torch_device("cpu") == torch_device(CPU) == CPU
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", ["cuda", "cuda:1", torch.device("cuda")])
def test_a_missing_device_is_an_error_or_the_cpu(name, without_cuda, capsys):
    with pytest.raises(ValueError, match=r"device='cuda.*', but torch sees no CUDA device here"):
        torch_device(name)
    assert torch_device(name, or_cpu=True) == CPU
    assert capsys.readouterr().err == ""


def test_a_device_is_missing_by_its_number(two_gpus):
    assert torch_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(ValueError, match="device='cuda:2', but torch sees only 2 CUDA devices"):
        torch_device("cuda:2")
    assert torch_device("cuda:2", or_cpu=True) == CPU


@pytest.mark.parametrize("progress", [None, True, print])
def test_auto_says_what_it_takes(progress, without_cuda, capsys):
    assert torch_device("auto", progress=progress) == CPU
    assert capsys.readouterr().err == 'device="auto": cpu, since torch sees no CUDA device here\n'
    assert torch_device("auto", progress=False) == CPU
    assert capsys.readouterr().err == ""


def test_auto_takes_cuda(two_gpus, capsys):
    assert torch_device("auto") == torch.device("cuda")
    assert capsys.readouterr().err == 'device="auto": cuda, GPU 0\n'


def test_auto_takes_the_cpu_where_the_device_cannot_compute(two_gpus, capsys, monkeypatch):
    def fails(*sizes, device):
        raise RuntimeError("CUDA error: no kernel image is available\nand more lines")

    monkeypatch.setattr(torch, "zeros", fails)
    assert torch_device("auto") == CPU
    assert capsys.readouterr().err == (
        'device="auto": cpu, since cuda fails: CUDA error: no kernel image is available\n'
    )


def test_each_process_takes_its_own_device(two_gpus, monkeypatch, capsys):
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert torch_device("cuda") == torch_device("auto") == torch.device("cuda", 1)
    assert torch_device("cuda:0") == torch.device("cuda", 0)
    assert capsys.readouterr().err == 'device="auto": cuda:1, GPU 1\n'
