"""A calibration that was interrupted ends as one that was not, and never goes on with another graph or other images."""

import numpy as np
import pytest

from trtkit import calib

GRAPH = "ab" * 32


def _batches(count: int = 25, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(0, 1 + i % 7, (2, 3, 8, 8)).astype(np.float32) for i in range(count)]


def _activations(x: np.ndarray) -> dict[str, np.ndarray]:
    return {"images": x, "relu": np.maximum(x, 0)}


def _same(a: calib.Calibration, b: calib.Calibration) -> bool:
    return (a.images, a.sha256, a.keys()) == (b.images, b.sha256, b.keys()) and all(
        np.array_equal(a[n].counts, b[n].counts)
        and (a[n].width, a[n].zeros, a[n].low, a[n].high) == (b[n].width, b[n].zeros, b[n].low, b[n].high)
        for n in a)


def _interrupted(state, batches, after: int, *, within_a_batch: bool = False) -> int:
    """Collect until the `after`-th inference, which is interrupted; returns how many inferences were made."""
    calls = 0

    def infer(x):
        nonlocal calls
        calls += 1
        if calls == after and not within_a_batch:
            raise KeyboardInterrupt
        found = _activations(x)
        return _Interrupted(found) if calls == after else found

    with pytest.raises(KeyboardInterrupt):
        calib.collect(infer, batches, state=state, graph_sha256=GRAPH, save_every=3, progress=False)
    return calls


class _Interrupted(dict):
    """Activations of which one is counted when the user presses Ctrl-C."""

    def items(self):
        yield next(iter(super().items()))
        raise KeyboardInterrupt


@pytest.mark.parametrize("within_a_batch", [False, True])
@pytest.mark.parametrize("after", [1, 3, 4, 17, 25])
def test_after_an_interruption_the_result_is_that_of_one_run(tmp_path, after, within_a_batch):
    state, batches = tmp_path / "state.npz", _batches()
    whole = calib.collect(_activations, batches, progress=False)
    _interrupted(state, batches, after, within_a_batch=within_a_batch)
    inferred = []
    resumed = calib.collect(lambda x: inferred.append(x) or _activations(x), iter(batches), state=state,
                            graph_sha256=GRAPH, save_every=3, progress=False)
    assert _same(resumed, whole)
    assert len(inferred) == 25 - 3 * ((after - 1) // 3)         # what was saved is not inferred again
    assert [p.name for p in tmp_path.iterdir()] == ["state.npz"]


def test_a_finished_state_infers_nothing_and_takes_more_images(tmp_path):
    state, batches = tmp_path / "state.npz", _batches()
    calib.collect(_activations, batches[:10], state=state, graph_sha256=GRAPH, progress=False)
    again = calib.collect(None, batches[:10], state=state, graph_sha256=GRAPH, progress=False)
    assert again.images == 20
    more = calib.collect(_activations, batches, state=state, graph_sha256=GRAPH, progress=False)
    assert _same(more, calib.collect(_activations, batches, progress=False))


def _state(tmp_path):
    state = tmp_path / "state.npz"
    calib.collect(_activations, _batches(), state=state, graph_sha256=GRAPH, progress=False)
    return state


def test_a_state_of_another_graph_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"graph abababababab.*graph cdcdcdcdcdcd"):
        calib.collect(_activations, _batches(), state=_state(tmp_path), graph_sha256="cd" * 32, progress=False)


@pytest.mark.parametrize(
    "images", [_batches(seed=1), _batches()[::-1], _batches()[:20], [], [b[:1] for b in _batches()]],
    ids=["other", "other order", "fewer", "none", "other shape"],
)
def test_a_state_of_other_images_is_refused(tmp_path, images):
    with pytest.raises(ValueError, match="calibration set"):
        calib.collect(_activations, images, state=_state(tmp_path), graph_sha256=GRAPH, progress=False)


@pytest.mark.parametrize(
    "damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"no archive", lambda b: b[9:]]
)
def test_a_damaged_state_is_refused_with_its_path(tmp_path, damage):
    state = _state(tmp_path)
    state.write_bytes(damage(state.read_bytes()))
    with pytest.raises(ValueError, match=r"state\.npz is no calibration state"):
        calib.collect(_activations, _batches(), state=state, graph_sha256=GRAPH, progress=False)


def test_a_state_with_parts_missing_is_refused(tmp_path):
    np.savez(tmp_path / "state.npz", graph_sha256=GRAPH)
    with pytest.raises(ValueError, match="no calibration state"):
        calib.collect(_activations, _batches(), state=tmp_path / "state.npz", graph_sha256=GRAPH, progress=False)


def test_a_state_needs_the_hash_of_its_graph(tmp_path):
    with pytest.raises(ValueError, match="graph_sha256"):
        calib.collect(_activations, _batches(), state=tmp_path / "state.npz", progress=False)
    with pytest.raises(ValueError, match="save_every"):
        calib.collect(_activations, _batches(), save_every=0, progress=False)


def test_the_hash_is_of_the_images_in_their_order():
    batches = _batches(4)
    found = calib.collect(_activations, batches, progress=False)
    assert found.sha256 == calib.images_sha256(iter(batches)) != calib.images_sha256(batches[::-1])
    assert calib.images_sha256([b.reshape(3, 2, 8, 8) for b in batches]) != found.sha256
    assert found.images == 8


def test_batches_are_let_go_one_by_one():
    """Peak memory must not grow with the number of images."""
    import tracemalloc

    def peak_bytes(count: int) -> int:
        tracemalloc.start()
        calib.collect(_activations, (np.full((1, 50_000), i, np.float32) for i in range(count)), progress=False)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    few, many = peak_bytes(5), peak_bytes(200)
    assert many < few + 200_000                         # one batch; 195 more would be 39 MB
