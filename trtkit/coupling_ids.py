"""Who is who among the channels of a network: identities, and which of them are bound to each other. Lesson 04.

Every channel that a layer writes gets a number. Two channels that must live or die together are bound: their numbers
go into one tree of a union-find forest (Galler and Fischer 1964), whose root stands for all of them.
"""

from dataclasses import dataclass

from trtkit.pytorch import Tensor, nn, torch


@dataclass(frozen=True)
class Step:
    """One thing that happens to channels during the run, in order; the drawing is made of these.

    Attributes:
        kind: "write", "scale" (one parameter per channel), "read", "join" (elementwise), or "concat".
        layer: module that does it.
        what: the operator's name, "" for a layer.
        branch: number of the branch that comes out; a layer that writes opens one.
        others: numbers of the branches that go in.
        ids: identities along the axis of the channels.
    """

    kind: str
    layer: str
    what: str
    branch: int
    others: tuple[int, ...]
    ids: Tensor


class Identities:
    """What is known during a traced run. `coupling_rules` fills it, `coupling.groups` reads it.

    Attributes:
        axes: (layer, "out" or "in") -> (channels,) identities along that axis of the layer's weight.
        sources: identities that no layer writes, one tensor per input or constant.
        fixed: identity -> why it must not go.
        steps: in the order of the run.
        modules: layer name -> module (a copy on the meta device).
    """

    def __init__(self, model: nn.Module):
        self.modules = dict(model.named_modules())
        self.owner = {id(t): (name, key) for name, module in self.modules.items()
                      for key, t in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]}
        self.axes: dict[tuple[str, str], Tensor] = {}
        self.sources: list[Tensor] = []
        self.fixed: dict[int, str] = {}
        self.steps: list[Step] = []
        self.where = [""]                       # names of the modules that run now, innermost last
        self._parents: list[int] = []
        self._ids: dict[int, Tensor] = {}       # id(activation) -> identities, size 1 along axes where they repeat
        self._branch: dict[int, int] = {}
        self._alive: list[Tensor] = []          # ids of objects are unique only as long as the objects live

    def here(self) -> str:
        """Name of the innermost module that runs now."""
        return self.where[-1] or "the model itself"

    def find(self, i: int) -> int:
        """The identity that stands for all those bound to `i`."""
        while self._parents[i] != i:
            self._parents[i] = i = self._parents[self._parents[i]]
        return i

    def tie(self, a: Tensor, b: Tensor) -> None:
        """Bind two tensors of identities element by element (broadcast against each other)."""
        a, b = torch.broadcast_tensors(a, b)
        different = a != b
        for i, j in set(zip(a[different].tolist(), b[different].tolist(), strict=True)):
            i, j = sorted((self.find(i), self.find(j)))
            self._parents[j] = i                # the older one stands for both

    def fix(self, ids: Tensor, why: str) -> None:
        """These channels must stay."""
        for i in set(ids.flatten().tolist()):
            self.fixed.setdefault(i, why)

    def fresh(self, count: int) -> Tensor:
        """(count,) identities that nothing else has."""
        ids = torch.arange(len(self._parents), len(self._parents) + count)
        self._parents += ids.tolist()
        return ids

    def constant(self, shape: tuple[int, ...], axis: int, why: str) -> Tensor:
        """Fixed identities for values that no layer writes, different along `axis` only."""
        ids = self.fresh(shape[axis])
        self.sources.append(ids)
        self.fix(ids, why)
        return along(ids, axis, len(shape))

    def knows(self, x: object) -> bool:
        """Whether x is an activation with identities."""
        return isinstance(x, Tensor) and id(x) in self._ids

    def thin(self, x: Tensor) -> Tensor:
        """Identities of an activation, of its number of dimensions, size 1 along axes where they repeat."""
        return self._ids[id(x)]

    def full(self, x: Tensor) -> Tensor:
        """Identities of an activation, in its shape."""
        return self.thin(x).expand(x.shape)

    def branch(self, x: Tensor) -> int:
        """Number of the branch that x belongs to."""
        return self._branch[id(x)]

    def put(self, x: Tensor, ids: Tensor, branch: int) -> None:
        """Note the identities of an activation (broadcast to its shape)."""
        for axis in range(ids.dim()):
            first = ids.narrow(axis, 0, 1)
            if ids.shape[axis] > 1 and (ids.stride(axis) == 0 or bool((ids == first).all())):
                ids = first
        self._ids[id(x)], self._branch[id(x)] = ids, branch
        self._alive.append(x)

    def see(self, layer: str, side: str, ids: Tensor) -> Tensor:
        """Note what lies along an axis of a layer's weight; a layer that runs twice binds what both runs see."""
        known = self.axes.setdefault((layer, side), ids)
        self.tie(known, ids)
        return known

    def step(self, kind: str, ids: Tensor, branch: int, others: tuple[int, ...], *, layer: str = "", what: str = "",
             ) -> None:
        """Note something for the drawing; without a layer's name it is the module that runs now."""
        self.steps.append(Step(kind, layer or self.where[-1], what, branch, others, ids.flatten()))


def along(ids: Tensor, axis: int, dims: int) -> Tensor:
    """(C,) -> (1, ..., C, ..., 1) with `dims` axes."""
    return ids.view([-1 if d == axis else 1 for d in range(dims)])
