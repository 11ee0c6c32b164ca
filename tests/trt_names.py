"""Which names of TensorRT does a source file touch, in one era? A small interpreter that runs types instead of values.

It walks the code as Python would in an era whose names are known (`oracles/trt_api`), and asks of each attribute that
is read, set or called on something of TensorRT's whether that era has it. `hasattr` is answered from the era's names:
a branch that it closes is not walked, so what stands there may be missing. That is how a guard looks:

    if hasattr(trt.BuilderFlag, "FP16"): ...          hasattr(trt, "IProgressMonitor") and trt.IProgressMonitor
    strongly = hasattr(...); ... if strongly: ...     if not hasattr(...): raise ...    getattr(trt, "X", None)
    def _strongly(): return hasattr(...)              if _strongly(): ...

A private function or class of the module is walked when walked code names it, so it inherits the guards of its callers.
Left out: loops are walked once, types of values are guessed from annotations, assignments and `VARIABLES`; a value of
unknown type is not checked.
"""

import ast
import json
import re
from pathlib import Path

SURFACES = Path(__file__).parent / "oracles" / "trt_api"
# What a variable holds whose type nothing else tells; a leading underscore or `self.` does not count.
VARIABLES = {
    "config": "IBuilderConfig", "builder": "Builder", "network": "INetworkDefinition", "parser": "OnnxParser",
    "runtime": "Runtime", "engine": "ICudaEngine", "context": "IExecutionContext", "inspector": "EngineInspector",
    "profile": "IOptimizationProfile", "cache": "ITimingCache", "tensor": "ITensor", "layer": "ILayer",
}  # fmt: skip
WRAPPED = {"IParserError": "ParserError", "IEngineInspector": "EngineInspector"}      # as docstrings call them
EXITS = (ast.Return, ast.Raise, ast.Continue, ast.Break)


def surface(era: str) -> dict:
    """All names of an era: "8.6", "10.15" or "11.4"."""
    return json.loads((SURFACES / f"{era}.json").read_text())


class Names:
    """After `Names(source, surface(era))`: `touched`, dotted names that era has; `missing`, lines that it refuses."""

    def __init__(self, source: str, era: dict):
        self.era, self.touched, self.missing = era, set(), []
        self._self_types: dict[str, str | None] = {}
        tree = ast.parse(source)
        self._module_env: dict = {"trt": "module"}
        self._answers = {n.name: n.body[-1].value for n in tree.body
                         if isinstance(n, ast.FunctionDef) and isinstance(n.body[-1], ast.Return) and not n.args.args}
        self._private = {n.name: n for n in tree.body
                         if isinstance(n, ast.FunctionDef | ast.ClassDef) and n.name.startswith("_")}
        later = [n for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)]
        self._block([n for n in tree.body if n not in later], self._module_env)
        for node in later:
            if node.name not in self._private:
                self._statement(node, self._module_env)

    # Names of the era ------------------------------------------------------------------------------------------------
    def _has(self, kind: str, name: str) -> bool:
        if name.startswith("__"):
            return True
        what, _, owner = kind.partition(":")
        if what == "module":
            return any(name in self.era[k] for k in ("functions", "constants", "enums", "classes"))
        if what == "enum":
            return name in self.era["enums"][owner] or name in ("name", "value")
        return any(name in entry[k] for entry in self._lineage(owner) for k in ("methods", "properties", "attributes"))

    def _lineage(self, cls: str) -> list[dict]:
        entry = self.era["classes"][cls]
        return [entry, *(e for base in entry["bases"] for e in self._lineage(base))]

    def _member(self, kind: str, name: str) -> str | None:
        """Kind of what stands behind a name that is there."""
        what, _, owner = kind.partition(":")
        if what == "module":
            where = next((k for k in ("classes", "enums", "functions") if name in self.era[k]), None)
            return {"classes": "class:", "enums": "enum:", "functions": "function:", None: ""}[where] + name or None
        if what in ("class", "of"):
            nested = f"{owner}.{name}"
            if nested in self.era["enums"]:
                return f"enum:{nested}"
            if any(name in entry["methods"] for entry in self._lineage(owner)):
                return f"method:{owner}.{name}"
        return None

    def _instance(self, text: str) -> str | None:
        name = WRAPPED.get(text, text)
        return f"of:{name}" if name in self.era["classes"] else None

    def _attribute(self, node: ast.expr, kind: str, name: str, *, write: bool = False) -> str | None:
        shown = f"{'trt' if kind == 'module' else kind.partition(':')[2]}.{name}"
        there = self._has(kind, name)
        if write and there and kind.startswith("of:"):
            there = any(e["properties"].get(name) == "writable" for e in self._lineage(kind[3:]))
        if not there:
            self.missing.append(f"line {node.lineno}: {shown} {'cannot be set' if write else 'is missing'}")
            return None
        if not name.startswith("__"):
            self.touched.add(shown.removeprefix("trt."))
        return self._member(kind, name)

    # Statements; True where what follows is not reached --------------------------------------------------------------
    def _block(self, statements: list[ast.stmt], env: dict) -> bool:
        return any(self._statement(s, env) for s in statements)

    def _statement(self, node: ast.stmt, env: dict) -> bool:
        if isinstance(node, ast.If):
            self._expr(node.test, env)
            truth = self._truth(node.test, env)
            ends = [truth is False or self._block(node.body, env), truth is True or self._block(node.orelse, env)]
            return all(ends)
        if isinstance(node, ast.FunctionDef):
            self._function(node, env)
        elif isinstance(node, ast.ClassDef):
            for part in (*node.bases, *node.decorator_list):
                self._expr(part, env)
            self._block(node.body, dict(env))
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            self._assign(node, env)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = {a.asname or a.name for a in node.names}
            env.update({name: "module" if name == "trt" else None for name in names})       # `cache` may be ours
        else:
            for child in ast.iter_child_nodes(node):
                if isinstance(child, ast.expr):
                    self._expr(child, env)
                elif isinstance(child, ast.withitem):
                    self._with(child, env)
            blocks = [getattr(node, k, []) for k in ("body", "orelse", "finalbody")]
            blocks += [h.body for h in getattr(node, "handlers", [])]
            ends = [self._block(b, env) for b in blocks]
            if isinstance(node, ast.With) and ends[0]:
                return True
        return isinstance(node, EXITS)

    def _with(self, item: ast.withitem, env: dict) -> None:
        kind = self._expr(item.context_expr, env)
        if isinstance(item.optional_vars, ast.Name):
            env[item.optional_vars.id] = kind

    def _assign(self, node: ast.Assign | ast.AnnAssign, env: dict) -> None:
        kind = self._expr(node.value, env) if node.value else None
        if isinstance(node, ast.AnnAssign):
            kind = self._annotated(node.annotation, env) or kind
        for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
            if isinstance(target, ast.Name):
                env[target.id], env["truth", target.id] = kind, self._truth(node.value, env) if node.value else None
            elif isinstance(target, ast.Attribute):
                if isinstance(target.value, ast.Name) and target.value.id == "self":
                    self._self_types[target.attr] = kind
                elif owner := self._expr(target.value, env):
                    self._attribute(target, owner, target.attr, write=True)
            else:
                self._expr(target, env)

    def _function(self, node: ast.FunctionDef | ast.Lambda, env: dict) -> None:
        inner = dict(env)
        for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs):
            inner[a.arg] = self._annotated(a.annotation, env) if a.annotation else self._guess(a.arg)
        for default in (*node.args.defaults, *filter(None, node.args.kw_defaults)):
            self._expr(default, env)
        if isinstance(node, ast.Lambda):
            self._expr(node.body, inner)
        else:
            self._block(node.body, inner)

    def _annotated(self, annotation: ast.expr, env: dict) -> str | None:
        text = annotation.value if isinstance(annotation, ast.Constant) else ast.unparse(annotation)
        found = re.search(r"\btrt\.(\w+)", str(text))
        return self._instance(found[1]) if found else None

    def _guess(self, name: str) -> str | None:
        return self._instance(VARIABLES.get(name.lstrip("_"), ""))

    # Expressions; their kind -----------------------------------------------------------------------------------------
    def _expr(self, node: ast.expr, env: dict) -> str | None:
        if isinstance(node, ast.Name):
            if node.id in self._private and isinstance(node.ctx, ast.Load):
                self._statement(self._private.pop(node.id), dict(self._module_env))
            return env.get(node.id) if node.id in env else self._guess(node.id)
        if isinstance(node, ast.Attribute):
            if isinstance(node.value, ast.Name) and node.value.id == "self":
                return self._self_types.get(node.attr) or self._guess(node.attr)
            kind = self._expr(node.value, env)
            return self._attribute(node, kind, node.attr) if kind and not kind.startswith(("method", "func")) else None
        if isinstance(node, ast.Call):
            return self._call(node, env)
        if isinstance(node, ast.IfExp):
            self._expr(node.test, env)
            truth = self._truth(node.test, env)
            ways = [way for way, closed in ((node.body, False), (node.orelse, True)) if truth is not closed]
            return _first([self._expr(way, env) for way in ways])
        if isinstance(node, ast.BoolOp):
            kinds = []
            for value in node.values:
                kinds.append(self._expr(value, env))
                if self._truth(value, env) is isinstance(node.op, ast.Or):      # decides it; the rest is not reached
                    break
            return _first(kinds)
        if isinstance(node, ast.Lambda):
            self._function(node, env)
            return None
        if isinstance(node, ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp):
            self._comprehension(node, dict(env))
            return None
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                self._expr(child, env)
        return None

    def _comprehension(self, node: ast.expr, env: dict) -> None:
        for part in node.generators:
            self._expr(part.iter, env)
            for target in ast.walk(part.target):
                if isinstance(target, ast.Name):
                    env[target.id] = self._guess(target.id) if target.id in ("layer", "tensor") else None
            for test in part.ifs:
                self._expr(test, env)
                if self._truth(test, env) is False:
                    return
        for child in ([node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]):
            self._expr(child, env)

    def _call(self, node: ast.Call, env: dict) -> str | None:
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        kind = None if name in ("hasattr", "getattr") else self._expr(node.func, env)
        for part in (*node.args, *(k.value for k in node.keywords)):
            self._expr(part, env)
        if name == "getattr" and len(node.args) == 2 and isinstance(node.args[1], ast.Constant):
            owner = self._expr(node.args[0], env)
            return self._attribute(node, owner, node.args[1].value) if owner else None
        if not kind:
            return None
        what, _, owner = kind.partition(":")
        if what == "class":
            self._arguments(node, owner, self.era["classes"][owner].get("init", ["", ""])[0])
            return f"of:{owner}"
        if what == "method":
            cls, _, method = owner.rpartition(".")
            signature = next(e["methods"][method] for e in self._lineage(cls) if method in e["methods"])
        elif what == "function":
            signature = self.era["functions"][owner]
        else:
            return None
        self._arguments(node, owner, signature[0])
        return self._instance(signature[1])

    def _arguments(self, node: ast.Call, name: str, overloads: str) -> None:
        """Keywords and numbers of arguments, where the docstring gives them."""
        starred = any(isinstance(a, ast.Starred) for a in node.args) or any(k.arg is None for k in node.keywords)
        if starred or not overloads:
            return
        given = {k.arg for k in node.keywords}
        for arguments in overloads.split(" | "):
            names = re.findall(r"(\w+): [^:]*?(?: (=)[^:,]*)?(?=,|$)", arguments)
            left = names[len(node.args):]
            if len(node.args) <= len(names) and given <= {n for n, _ in left} and all(
                    n in given or default for n, default in left):
                return
        self.missing.append(f"line {node.lineno}: {name} takes ({overloads}), got {len(node.args)} and {sorted(given)}")

    def _truth(self, node: ast.expr, env: dict) -> bool | None:
        if isinstance(node, ast.Constant):
            return bool(node.value)
        if isinstance(node, ast.Name):
            return env.get(("truth", node.id))
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            truth = self._truth(node.operand, env)
            return None if truth is None else not truth
        if isinstance(node, ast.BoolOp):
            truths, decides = [self._truth(v, env) for v in node.values], isinstance(node.op, ast.Or)
            return decides if decides in truths else None if None in truths else not decides
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in self._answers:
            return self._truth(self._answers[node.func.id], env)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "hasattr":
            thing, name = node.args
            kind = self._expr(thing, env)
            return self._has(kind, name.value) if kind and isinstance(name, ast.Constant) else None
        return None


def _first(kinds: list[str | None]) -> str | None:
    return next(filter(None, kinds), None)
