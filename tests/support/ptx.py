"""Interprets PTX, the output of nvcc, on numpy: one warp at a time, with 32 lanes in parallel.

Divergent lanes continue with the lowest address first and reconverge there. Every access is checked for array bounds
and alignment, shared memory is initialised to NaN, and a shuffle or vote requires exactly the lanes of its mask.
Instructions that the kernels do not use raise NotImplementedError.
Source: NVIDIA, Parallel Thread Execution ISA.
"""

import re
from bisect import bisect_right, insort
from typing import NamedTuple

import numpy as np

SHARED, PARAMETERS = 1 << 10, 1 << 20  # start addresses of the address spaces
LANE = np.arange(32, dtype=np.uint64)
KINDS = {"u": "u", "s": "i", "f": "f", "b": "u"}


def dtype_of(name):
    return np.dtype(f"{KINDS[name[0]]}{int(name[1:]) // 8}")


def unsigned(dtype):
    return np.dtype(f"u{dtype.itemsize}")


def split(text):
    """Splits operands at commas outside brackets."""
    return [part.strip() for part in re.findall(r"(?:\{[^}]*\}|\[[^]]*\]|[^,{\[])+", text) if part.strip()]


class Instruction(NamedTuple):
    guard: str | None
    operation: list[str]
    operands: list[str]
    text: str


class Kernel:
    """A kernel (entry) in a PTX file."""

    def __init__(self, source, name):
        source = re.sub(r"//[^\n]*", "", source)
        found = re.search(rf"\.entry {name}\((.*?)\)(.*?)\n\}}", source, re.DOTALL)
        self.parameters = re.findall(r"\.param\s+(?:\.align \d+\s+)?\.(\w+)\s+(\w+)(?:\[(\d+)\])?", found[1])
        self.instructions, self.labels, self.run = [], {}, set()
        for statement in found[2].split("{", 1)[1].replace("\n", " ").split(";"):
            rest = statement.strip()
            while label := re.match(r"(\$\w+):\s*", rest):
                self.labels[label[1]] = len(self.instructions)
                rest = rest[label.end() :]
            if not rest or rest.startswith("."):
                continue
            guard = re.match(r"@(!?%p\d+)\s+", rest)
            body = rest[guard.end() :] if guard else rest
            operation, _, operands = body.partition(" ")
            operation, _, tabbed = operation.partition("\t")
            self.instructions.append(
                Instruction(guard and guard[1], operation.split("."), split(f"{tabbed} {operands}"), rest)
            )


class Memory:
    """The arrays that a kernel may access."""

    def __init__(self):
        self._starts, self._arrays = [], {}

    def add(self, array):
        """Registers a C-contiguous array, which kernels modify in place, and returns its address."""
        address = array.ctypes.data
        insort(self._starts, address)
        self._arrays[address] = array.reshape(-1).view(np.uint8)
        return address

    def find(self, addresses, size, text):
        """Returns the bytes of the array that contains all addresses, and the offsets in it."""
        low, high = int(addresses.min()), int(addresses.max())
        start = self._starts[max(bisect_right(self._starts, low) - 1, 0)]
        held = self._arrays[start]
        if low < start or high + size > start + len(held):
            raise IndexError(f"{text}: address outside of every array")
        return held, (addresses - np.uint64(start)).astype(np.int64)


def simple_operations(dtype):
    """Instructions whose result depends only on their operands, for operands of this dtype."""
    return {
        "mov": lambda a: a,
        "cvta": lambda a: a,
        "add": lambda a, b: a + b,
        "sub": lambda a, b: a - b,
        "mul": lambda a, b: a * b,
        "mad": lambda a, b, c: a * b + c,
        "div": lambda a, b: a / b if dtype.kind == "f" else np.trunc(a / b).astype(dtype),
        "rem": lambda a, b: np.fmod(a, b),
        "min": lambda a, b: np.fmin(a, b) if dtype.kind == "f" else np.minimum(a, b),
        "max": lambda a, b: np.fmax(a, b) if dtype.kind == "f" else np.maximum(a, b),
        "neg": lambda a: -a,
        "abs": np.abs,
        "and": lambda a, b: a & b,
        "or": lambda a, b: a | b,
        "xor": lambda a, b: a ^ b,
        "not": lambda a: ~a,
        "ex2": np.exp2,
        "lg2": np.log2,
        "rsqrt": lambda a: (1 / np.sqrt(a)).astype(dtype),
        "rcp": lambda a: np.divide(1, a, dtype=dtype),
        "popc": lambda a: np.array([int(v).bit_count() for v in a], "u4"),
        "clz": lambda a: np.array([8 * dtype.itemsize - int(v).bit_length() for v in a], "u4"),
        "brev": lambda a: np.array([int(f"{int(v):032b}"[::-1], 2) for v in a], "u4"),
    }


class Warp:
    """State of a warp that executes a kernel."""

    def __init__(self, kernel, memory, arguments, block, grid, shared):
        self.kernel, self.memory, self.registers = kernel, memory, {}
        self.shared = np.full(max(shared, 4) // 4, np.nan, np.float32).view(np.uint8)
        self.special = {"%tid.x": LANE, "%ctaid.x": LANE * 0 + block, "%ntid.x": LANE * 0 + 32,
                        "%nctaid.x": LANE * 0 + grid, "%ctaid.y": LANE * 0, "%nctaid.y": LANE * 0 + 1}  # fmt: skip
        self.places, place, values = {}, 0, []
        for (_, name, _), value in zip(kernel.parameters, arguments, strict=True):
            data = np.asarray(value).tobytes()
            place = -(-place // 8) * 8
            self.places[name] = PARAMETERS + place
            values.append((place, data))
            place += len(data)
        self.parameters = np.zeros(place, np.uint8)
        for start, data in values:
            self.parameters[start : start + len(data)] = np.frombuffer(data, np.uint8)

    # ---- registers: 64 bits each, of which an instruction may use fewer

    def read(self, operand, dtype, mask):
        if operand in self.special:
            bits = self.special[operand]
        elif operand[0] == "%":
            if operand not in self.registers:
                raise ValueError(f"{operand} is read before it is written")
            bits = self.registers[operand]
        elif operand[:2] in ("0f", "0F", "0d", "0D"):
            bits = LANE * 0 + np.uint64(int(operand[2:], 16))
        elif operand.lstrip("-").isdigit() or operand[:2] == "0x":
            bits = LANE * 0 + np.uint64(int(operand, 0) & (2**64 - 1))
        elif operand in self.places:
            bits = LANE * 0 + np.uint64(self.places[operand])
        elif re.fullmatch(r"\w+", operand):
            bits = LANE * 0 + np.uint64(SHARED)  # the only shared array
        else:
            raise NotImplementedError(f"operand is not implemented: {operand}")
        bits = bits[mask]
        return bits if bits.dtype == bool else bits.astype(unsigned(dtype)).view(dtype)

    def write(self, operand, values, mask):
        if operand == "_":
            return
        values = np.asarray(values)
        if operand not in self.registers:
            self.registers[operand] = np.zeros(32, bool if values.dtype == bool else np.uint64)
        bits = values if values.dtype == bool else values.view(unsigned(values.dtype)).astype(np.uint64)
        self.registers[operand][mask] = bits

    # ---- memory

    def locate(self, operand, operation, size, mask, text):
        base, _, offset = operand.strip("[]").partition("+")
        addresses = self.read(base, np.dtype("u8"), mask) + np.uint64(int(offset or 0) & (2**64 - 1))
        if (addresses % np.uint64(size)).any():
            raise IndexError(f"{text}: not aligned to {size} bytes")
        if "param" in operation:
            held, start = self.parameters, PARAMETERS
        elif "shared" in operation:
            held, start = self.shared, SHARED
        else:
            return self.memory.find(addresses, size, text)
        places = addresses.astype(np.int64) - start
        if places.min() < 0 or places.max() + size > len(held):
            raise IndexError(f"{text}: outside of {'parameters' if 'param' in operation else 'shared memory'}")
        return held, places

    def access(self, instruction, mask):
        operation, operands = instruction.operation, instruction.operands
        dtype = dtype_of(operation[-1])
        kind = operation[0]
        where = operands[0] if kind in ("st", "red") else operands[1]
        cells = split((operands[0] if where is operands[1] else operands[1]).strip("{}"))
        size = dtype.itemsize
        held, places = self.locate(where, operation, size * len(cells), mask, instruction.text)
        given = split(operands[-1].strip("{}")) if kind in ("atom", "red") else cells
        for i, cell in enumerate(cells):
            at = places[:, None] + i * size + np.arange(size)
            before = np.ascontiguousarray(held[at]).view(dtype).reshape(-1)
            if kind == "ld":
                self.write(cell, before, mask)
            elif kind == "st":
                held[at] = np.ascontiguousarray(self.read(cell, dtype, mask)).view(np.uint8).reshape(-1, size)
            else:
                values, old = self.read(given[i], dtype, mask), before.copy()
                combine = {"add": np.add, "min": np.minimum, "max": np.maximum}[
                    next(o for o in operation if o in ("add", "min", "max"))
                ]
                for lane, place in enumerate(places + i * size):  # lanes may have the same address
                    target = held[place : place + size].view(dtype)
                    old[lane] = target[0]
                    target[0] = combine(target[0], values[lane])
                if kind == "atom":
                    self.write(cell, old, mask)

    # ---- arithmetic

    def calculate(self, instruction, mask):
        operation, operands = instruction.operation, instruction.operands
        kind, last = operation[0], operation[-1]
        if last == "pred":
            x = [self.read(o, None, mask) if o[0] == "%" else np.full(mask.sum(), o != "0") for o in operands[1:]]
            result = {"mov": lambda: x[0], "not": lambda: ~x[0], "and": lambda: x[0] & x[1], "or": lambda: x[0] | x[1],
                      "xor": lambda: x[0] ^ x[1]}[kind]()  # fmt: skip
            return self.write(operands[0], result, mask)
        dtype = dtype_of(last)
        if kind == "selp":
            chosen = self.read(operands[3], None, mask)
            pair = [self.read(o, dtype, mask) for o in operands[1:3]]
            return self.write(operands[0], np.where(chosen, *pair), mask)
        if kind == "cvt":
            return self.write(operands[0], self.read(operands[1], dtype, mask).astype(dtype_of(operation[-2])), mask)
        if kind == "mov" and operands[0].startswith("{"):
            whole = self.read(operands[1], dtype, mask)
            parts = split(operands[0].strip("{}"))
            for part, half in zip(parts, whole.view(f"u{dtype.itemsize // 2}").reshape(-1, 2).T, strict=True):
                self.write(part, np.ascontiguousarray(half), mask)
            return None
        if kind == "mov" and operands[1].startswith("{"):
            half = np.dtype(f"u{dtype.itemsize // 2}")
            parts = [self.read(part, half, mask) for part in split(operands[1].strip("{}"))]
            return self.write(operands[0], np.stack(parts, axis=1).reshape(-1).view(dtype), mask)
        x = [self.read(o, dtype, mask) for o in operands[1:]]
        wide = np.dtype(f"{dtype.kind}{2 * dtype.itemsize}") if "wide" in operation else dtype
        if kind == "setp":
            unordered = np.isnan(x[0]) | np.isnan(x[1]) if dtype.kind == "f" else False
            how = operation[1]
            if how in ("nan", "num"):
                result = unordered if how == "nan" else ~unordered
            else:
                result = {"eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater,
                          "ge": np.greater_equal}[how[:2]](x[0], x[1])  # fmt: skip
                result = result | unordered if how[2:] == "u" else result & ~np.asarray(unordered)
            if len(operation) > 3:
                other = self.read(operands[3], None, mask)
                result = {"and": result & other, "or": result | other}[operation[2]]
        elif kind in ("shl", "shr"):
            by = self.read(operands[2], np.dtype("u4"), mask).astype(dtype)
            result = x[0] << by if kind == "shl" else x[0] >> by
        elif kind in ("mul", "mad") and "wide" in operation:
            result = x[0].astype(wide) * x[1].astype(wide)
            if kind == "mad":
                result = result + self.read(operands[3], wide, mask)
        elif kind == "fma":
            more = np.dtype("f8") if dtype.itemsize == 4 else np.dtype("g")
            result = (x[0].astype(more) * x[1].astype(more) + x[2].astype(more)).astype(dtype)
        elif kind == "bfind":
            lengths = np.array([int(v).bit_length() for v in x[0]], np.int64)
            result = np.where(lengths, 32 - lengths if "shiftamt" in operation else lengths - 1, 2**32 - 1).astype("u4")
        else:
            simple = simple_operations(dtype)
            if kind not in simple:
                raise NotImplementedError(f"instruction is not implemented: {instruction.text}")
            result = simple[kind](*x)
        self.write(operands[0], result if result.dtype == bool else np.asarray(result), mask)
        return None

    def exchange(self, instruction, mask):
        """Executes shuffles, votes and warp barriers; their last operand is the mask of lanes."""
        operation, operands = instruction.operation, instruction.operands
        expected = int(self.read(operands[-1], np.dtype("u4"), mask)[0])
        here = int(sum(1 << lane for lane in np.flatnonzero(mask)))
        if here != expected:
            raise RuntimeError(f"{instruction.text}: mask {expected:08x}, but lanes {here:08x} are active")
        if operation[0] == "vote":
            votes = self.read(operands[1].lstrip("!"), None, mask) ^ (operands[1][0] == "!")
            total = sum(1 << int(lane) for lane in np.flatnonzero(mask)[votes])
            answers = {"any": votes.any(), "all": votes.all(), "ballot": np.uint32(total)}
            self.write(operands[0], np.full(mask.sum(), answers[operation[2]]), mask)
        elif operation[0] == "shfl":
            values = np.zeros(32, np.uint32)
            values[mask] = self.read(operands[1], np.dtype("u4"), mask)
            by = self.read(operands[2], np.dtype("u4"), mask).astype(np.int64)
            clamp = self.read(operands[3], np.dtype("u4"), mask)
            if (clamp & 0x1F00).any():
                raise NotImplementedError(f"shuffles within parts of a warp: {instruction.text}")
            lane = np.flatnonzero(mask)
            source = {
                "idx": by & 31,
                "bfly": lane ^ by,
                "down": np.minimum(lane + by, 31),
                "up": np.maximum(lane - by, 0),
            }
            self.write(operands[0].split("|")[0], values[source[operation[2]]], mask)


@np.errstate(all="ignore")
def launch(kernel, memory, grid, arguments, shared=0):
    """Runs the blocks of a grid, one warp each, in sequence. kernel.run collects the executed instructions."""
    for block in range(grid):
        warp = Warp(kernel, memory, arguments, block, grid, shared)
        address, alive = np.zeros(32, np.int64), np.ones(32, bool)
        while alive.any():
            at = int(address[alive].min())
            mask = alive & (address == at)
            instruction = kernel.instructions[at]
            kernel.run.add(at)
            address[mask] = at + 1
            guard = mask
            if instruction.guard:
                holds = warp.registers[instruction.guard.lstrip("!")] ^ (instruction.guard[0] == "!")
                guard = mask & holds
            kind = instruction.operation[0]
            if kind == "bra":
                address[guard] = kernel.labels[instruction.operands[-1]]
            elif kind == "ret":
                alive &= ~guard
            elif not guard.any():
                continue
            elif kind in ("ld", "st", "atom", "red"):
                warp.access(instruction, guard)
            elif kind in ("shfl", "vote") or instruction.operation[:2] == ["bar", "warp"]:
                warp.exchange(instruction, guard)
            else:
                warp.calculate(instruction, guard)
