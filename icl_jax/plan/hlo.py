"""What a compiled step does, read from its HLO text: bytes moved and collectives, with loops counted as often as run.

XLA's own cost analysis counts the body of a loop once. A step has loops over micro-batches, layers and chunks of the
loss, so that its figures would be wrong by such factors; with loops counted once, the walk below agrees with it.

No formula from the shardings stands in its place. It would know what is sent, not how, nor what goes to memory and
back: the compiler makes all-reduces of gathers over a whole slice, and its fusions decide the traffic, by half as much
again between sizes of chunks. `paper-attn-1l` waits for arithmetic with 8 % to spare: only reading says which it is.
"""

import math
import re
from dataclasses import dataclass, field
from functools import cached_property

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

_TYPE_BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4,
               "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8, "c64": 8}  # fmt: skip
_SHAPE = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\](\{[^}]*\})?")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\) -> .*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.-]+) = (.*)$")
_NAMES = re.compile(r"%([\w.-]+)")
# Names of buffers, not movements of their bytes.
_FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "iota", "partition-id")
_SLICES = ("dynamic-slice", "slice", "gather")


@dataclass(frozen=True, slots=True)
class Collective:
    """One collective as each device sees it."""

    kind: str
    n_bytes: int
    """Of the whole array: what is reduced, or what has been gathered at the end."""
    group: tuple[int, ...]
    """Devices that take part together, numbered as in the mesh; of several such groups the first."""
    count: int
    """Times per step."""


@dataclass(slots=True)
class _Instruction:
    name: str
    opcode: str
    result: str
    operands: tuple[str, ...]
    attributes: str
    is_root: bool

    def called(self, key: str) -> str | None:
        found = re.search(rf"\b{key}=%?([\w.-]+)", self.attributes)
        return found.group(1) if found else None


@dataclass(slots=True)
class _Computation:
    instructions: dict[str, _Instruction] = field(default_factory=dict)

    @property
    def root(self) -> _Instruction:
        return next(i for i in self.instructions.values() if i.is_root)


def shape_bytes(text: str, *, on_chip: bool = True) -> int:
    """Bytes of the arrays in a type such as ``(f32[2,3]{1,0}, bf16[4])``.

    Without `on_chip`, those that the TPU compiler keeps in memory on the chip, ``S(1)``, are left out.
    """
    total = 0.0
    for dtype, dims, layout in _SHAPE.findall(text):
        if dtype in _TYPE_BYTES and (on_chip or "S(1)" not in layout):
            total += _TYPE_BYTES[dtype] * math.prod(int(n) for n in dims.split(",") if n)
    return round(total)


class HloProgram:
    """A compiled program, from ``compiled.as_text()``.

    `n_devices` is how many run it. With `loops_once` the walk counts a loop's body once, as XLA's cost analysis does.
    """

    def __init__(self, text: str, n_devices: int, *, loops_once: bool = False) -> None:
        self._n_devices, self._loops_once = n_devices, loops_once
        self._computations: dict[str, _Computation] = {}
        self._entry = ""
        self._read(text)

    def _read(self, text: str) -> None:
        current = _Computation()
        for line in text.splitlines():
            if header := _HEADER.match(line):
                current = self._computations[header.group(2)] = _Computation()
                self._entry = header.group(2) if header.group(1) else self._entry
            elif found := _INSTRUCTION.match(line):
                instruction = _parse(bool(found.group(1)), found.group(2), found.group(3))
                current.instructions[instruction.name] = instruction

    def collectives(self) -> list[Collective]:
        """All of a step's, equal ones added up."""
        counts: dict[tuple[str, int, tuple[int, ...]], int] = {}
        chains: set[str] = set()
        for instruction, computation, times in self._run():
            kind = instruction.opcode.removesuffix("-start")
            if kind in COLLECTIVES:
                # One that runs beside several fusions stands in each of them, as a link of one chain.
                chain = re.search(r'chain_id="(\d+)"', instruction.attributes)
                if chain and chain.group(1) in chains:
                    continue
                chains |= {chain.group(1)} if chain else set()
                group = self._group(instruction)
                n_bytes = sum(self._operand_bytes(instruction, computation))
                n_bytes *= len(group) if kind == "all-gather" else 1
                # The TPU compiler's form of a reduce-scatter is an all-reduce inside a fusion of that name.
                key = ("reduce-scatter" if "all-reduce-scatter" in computation else kind, n_bytes, group)
                counts[key] = counts.get(key, 0) + times
        return [Collective(kind, n_bytes, group, n) for (kind, n_bytes, group), n in counts.items()]

    @cached_property
    def hbm_bytes(self) -> int:
        """Bytes that a step reads from and writes to the device's memory: operands and results of what it runs.

        Fusions keep their insides on the chip, and count for what they slice out of an operand, not for all of it.
        Kernels (`custom-call`) count each operand and result once, however often they read it.
        """
        return sum(
            self._moved(instruction, computation) * times
            for instruction, computation, times in self._run(into_fusions=False)
        )

    def _run(self, *, into_fusions: bool = True) -> list[tuple[_Instruction, str, int]]:
        """Each instruction that a step runs, its computation and how often."""
        found: list[tuple[_Instruction, str, int]] = []
        todo = [(self._entry, 1)]
        while todo:
            name, times = todo.pop()
            for instruction in self._computations[name].instructions.values():
                found.append((instruction, name, times))
                if instruction.opcode == "while":
                    body, condition = instruction.called("body"), instruction.called("condition")
                    assert body
                    assert condition
                    todo.append((body, times * (1 if self._loops_once else self._trips(instruction, condition))))
                elif instruction.opcode == "conditional":
                    branches = re.search(r"branch_computations=\{([^}]*)\}", instruction.attributes)
                    names = _NAMES.findall(branches.group(1)) if branches else []
                    names += [n for key in ("true_computation", "false_computation") if (n := instruction.called(key))]
                    todo += [(n, times) for n in names]
                elif instruction.opcode == "call":
                    todo.append((str(instruction.called("to_apply")), times))
                elif (callee := instruction.called("calls")) and (into_fusions or instruction.opcode != "fusion"):
                    todo.append((callee, times))
        return found

    def _trips(self, loop: _Instruction, condition: str) -> int:
        """How often a loop runs: from the compiler's note, else the bound that its condition compares with."""
        noted = re.search(r'known_trip_count[":{]+n":"(\d+)"', loop.attributes)
        if noted:
            return int(noted.group(1))
        instructions = self._computations[condition].instructions.values()
        bounds = [int(i.attributes) for i in instructions if i.opcode == "constant" and i.attributes.isdigit()]
        if len(bounds) != 1:
            raise ValueError(f"loop {loop.name}: its condition has {len(bounds)} whole numbers, not one bound")
        return bounds[0]

    def _group(self, instruction: _Instruction) -> tuple[int, ...]:
        """The first group of devices. Raises ValueError for an unknown form: a guess would be a wrong figure."""
        text = instruction.attributes
        if found := re.search(r"replica_groups=\{\{([\d,]+)\}", text):
            return tuple(int(n) for n in found.group(1).split(","))
        if found := re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](T\(([\d,]+)\))?", text):
            # Iota form: the numbers 0.. in an array of these dimensions, transposed, then cut into groups.
            dims = [int(n) for n in found.group(3).split(",")]
            order = [int(n) for n in (found.group(5) or ",".join(map(str, range(len(dims))))).split(",")]
            return tuple(_transposed(dims, order)[: int(found.group(2))])
        if found := re.search(r"replica_groups=mesh\[([^]]*)\] \{((?:'\w+',?)+)\}", text):
            # Mesh form (JAX 0.12): devices numbered row by row in a mesh, a group along the axes named last.
            sides = {name: int(side) for name, side in re.findall(r"'(\w+)'=(\d+)", found.group(1))}
            inner = re.findall(r"'(\w+)'", found.group(2))
            order = [i for i, name in enumerate(sides) if name not in inner] + [list(sides).index(n) for n in inner]
            n_in_group = math.prod(sides[name] for name in inner)
            return tuple(_transposed(list(sides.values()), order)[:n_in_group])
        if found := re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", text):
            return int(found.group(1)), int(found.group(2))
        if "replica_groups={}" in text or "replica_groups" not in text:
            return tuple(range(self._n_devices))
        raise ValueError(f"{instruction.opcode}: unknown form of a group of devices: {text[:200]}")

    def _operand_bytes(self, instruction: _Instruction, computation: str, *, on_chip: bool = True) -> list[int]:
        instructions = self._computations[computation].instructions
        return [shape_bytes(instructions[name].result, on_chip=on_chip) for name in instruction.operands]

    def _moved(self, instruction: _Instruction, computation: str) -> int:
        opcode = instruction.opcode
        if opcode in _FREE or opcode in ("while", "conditional", "call") or opcode.endswith(("-done", "-update")):
            return 0
        result = shape_bytes(instruction.result, on_chip=False)
        operands = self._operand_bytes(instruction, computation, on_chip=False)
        if opcode in _SLICES:
            return 2 * result
        if opcode == "dynamic-update-slice":
            return 2 * operands[1]
        if opcode.endswith("-start"):
            return sum(operands) + max(0, result - sum(operands))
        callee = instruction.called("calls") if opcode == "fusion" else None
        if callee is None:
            return result + sum(operands)
        return self._fusion_bytes(self._computations[callee], operands, result)

    @staticmethod
    def _fusion_bytes(fused: _Computation, operands: list[int], result: int) -> int:
        total = 0
        updated: set[str] = set()
        root = fused.root
        roots = [fused.instructions[n] for n in root.operands] if root.opcode == "tuple" else [root]
        for each in roots:
            while each.opcode in ("bitcast", "convert", "copy"):
                each = fused.instructions[each.operands[0]]
            if each.opcode == "dynamic-update-slice":
                # Written in place: only the slice moves.
                slice_bytes = shape_bytes(fused.instructions[each.operands[1]].result)
                result -= shape_bytes(each.result) - slice_bytes
                target = fused.instructions[each.operands[0]]
                while target.opcode in ("bitcast", "convert", "copy"):
                    target = fused.instructions[target.operands[0]]
                updated.add(target.name)
        parameters = {int(i.attributes): i.name for i in fused.instructions.values() if i.opcode == "parameter"}
        for index, n_bytes in enumerate(operands):
            name = parameters[index]
            users = [i for i in fused.instructions.values() if name in i.operands]
            if name in updated:
                continue
            if users and all(i.opcode in _SLICES and i.operands[0] == name for i in users):
                n_bytes = min(n_bytes, sum(shape_bytes(i.result) for i in users))
            total += n_bytes
        return total + max(0, result)


def _parse(is_root: bool, name: str, rest: str) -> _Instruction:
    """``type opcode(operands), attributes``; the type may be a tuple with spaces in it."""
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    result, rest = rest[:end], rest[end:].lstrip()
    opening = rest.index("(")
    closing = _closing(rest, opening)
    opcode, inside = rest[:opening], rest[opening + 1 : closing]
    # Of a parameter its number and of a constant its value stand where others have operands.
    attributes = inside if opcode in ("parameter", "constant") else rest[closing + 1 :]
    return _Instruction(name, opcode, result, tuple(_NAMES.findall(inside)), attributes, is_root)


def _closing(text: str, opening: int) -> int:
    depth = 0
    for i in range(opening, len(text)):
        depth += {"(": 1, ")": -1}.get(text[i], 0)
        if depth == 0:
            return i
    raise ValueError(f"no closing parenthesis: {text[:80]}")


def _transposed(dims: list[int], order: list[int]) -> list[int]:
    """Numbers 0.. of an array of these dimensions, read in the order of its transpose."""
    strides = [math.prod(dims[i + 1 :]) for i in range(len(dims))]
    numbers = [0]
    for axis in order:
        numbers = [n + strides[axis] * i for n in numbers for i in range(dims[axis])]
    return numbers
