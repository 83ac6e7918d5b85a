"""The compiled attention equals attention by its formula, and its absence changes nothing else."""

import threading
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import embedlm
from embedlm.backbone import cpu_attention
from embedlm.backbone.cpu_attention import How, attend_packed, attend_prompts
from embedlm.backbone.layout import Layout
from embedlm.backbone.native import attention, compiled
from embedlm.errors import InputError
from tests.backbone.test_cpu_attention import assert_alone_too, by_formula
from tests.command import server

here = pytest.mark.skipif(
    compiled.library() is None, reason="no compiler, or a processor without AVX512-BF16"
)


def row(tokens, heads, kinds, width, value_width, spread=1.0):
    sizes = ((heads, width), (kinds, width), (kinds, value_width))
    parts = [torch.randn(1, tokens, h, w).bfloat16().transpose(1, 2) for h, w in sizes]
    return [parts[0] * spread, *parts[1:]]


@here
@settings(max_examples=120, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 300), min_size=1, max_size=6),
    prefix=st.sampled_from([0, 1, 9, 140]),
    held=st.booleans(),
    heads=st.sampled_from([(4, 1), (4, 2), (6, 6), (9, 3)]),
    widths=st.sampled_from([(64, 64), (32, 16), (80, 80), (6, 48), (128, 128), (192, 128)]),
    causal=st.booleans(),
    window=st.sampled_from([None, 1, 5, 50, 200]),
    spread=st.sampled_from([1.0, 30.0]),
)
def test_any_layout_equals_the_formula(
    lengths, prefix, held, heads, widths, causal, window, spread
):
    torch.manual_seed(sum(lengths))
    layout = Layout(tuple(lengths), causal, prefix if causal else 0, held)
    query, key, value = row(layout.prefix + sum(lengths), *heads, *widths, spread)
    how = How(causal, 0.2, window)
    with torch.inference_mode():
        asking = query[:, :, layout.absent :]
        assert attention.suits(asking, key, value)
        found_1THD = attend_packed(asking, key, value, layout, how)
    wanted_1THD = by_formula(query, key, value, layout, how)[:, layout.absent :]
    # Weights and results are rounded to eight bits.
    torch.testing.assert_close(found_1THD.float(), wanted_1THD, atol=0.02, rtol=0.02)


@here
@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 300), min_size=2, max_size=6),
    causal=st.booleans(),
    window=st.sampled_from([None, 5, 50]),
    threads=st.sampled_from([1, 2, 3]),
)
def test_a_sequence_is_the_same_to_the_last_bit_in_any_company(lengths, causal, window, threads):
    torch.manual_seed(sum(lengths))
    how = How(causal, 0.2, window)
    query, key, value = row(sum(lengths), 4, 2, 64, 64)
    before = torch.get_num_threads()
    with torch.inference_mode():
        torch.set_num_threads(threads)
        try:
            found_1THD = attend_packed(query, key, value, Layout(tuple(lengths), causal), how)
        finally:
            torch.set_num_threads(before)
    assert_alone_too(found_1THD, (query, key, value), lengths, how)


@here
@settings(max_examples=40, deadline=None)
@given(
    pads=st.lists(st.integers(0, 40), min_size=1, max_size=5),
    longest=st.integers(1, 150),
    held=st.sampled_from([0, 1, 70]),
    transposed=st.booleans(),
)
def test_prompts_equal_the_formula(pads, longest, held, transposed):
    torch.manual_seed(longest)
    tokens = max(pads) + longest
    if transposed:
        query = torch.randn(len(pads), tokens, 4, 32).bfloat16().transpose(1, 2)
    else:
        query = torch.randn(len(pads), 4, tokens, 32).bfloat16()
    key, value = torch.randn(2, len(pads), 2, held + tokens, 32).bfloat16()
    with torch.inference_mode():
        assert attention.suits(query, key, value)
        found_BTHD = attend_prompts(query, key, value, tuple(pads), 0.2)
    assert found_BTHD.isfinite().all()
    for at, pad in enumerate(pads):
        keys = [*range(held), *range(held + pad, held + tokens)]
        k_HSD, v_HSD = (x[at, :, keys].float().repeat_interleave(2, 0) for x in (key, value))
        score_HTS = query[at, :, pad:].float() @ k_HSD.transpose(1, 2) * 0.2
        seen = torch.ones(tokens - pad, len(keys), dtype=torch.bool).tril(held)
        wanted_HTD = score_HTS.masked_fill(~seen, -torch.inf).softmax(-1) @ v_HSD
        found_HTD = found_BTHD[at, pad:].transpose(0, 1).float()
        torch.testing.assert_close(found_HTD, wanted_HTD, atol=0.02, rtol=0.02)


@here
def test_what_is_no_number_stays_in_its_sequence_and_is_seen():
    torch.manual_seed(0)
    layout, how = Layout((20, 33), causal=False), How(causal=False, scale=0.3)
    query, key, value = row(53, 4, 2, 64, 64)
    with torch.inference_mode():
        before_1THD = attend_packed(query, key, value, layout, how)
        key[:, :, 4] = torch.nan
        found_1THD = attend_packed(query, key, value, layout, how)
    assert found_1THD[:, :20].isnan().all()
    assert torch.equal(found_1THD[:, 20:], before_1THD[:, 20:])


@here
def test_scores_of_any_size_have_weights():
    torch.manual_seed(0)
    for scale in (1e-30, 1e4, 1e30):
        query, key, value = row(40, 4, 2, 64, 64)
        layout, how = Layout((40,), causal=True), How(causal=True, scale=scale)
        with torch.inference_mode():
            found_1THD = attend_packed(query, key, value, layout, how)
        assert found_1THD.isfinite().all()
        assert found_1THD.abs().max() <= value.abs().max()


@here
def test_layouts_that_it_does_not_take_go_to_products():
    query, key, value = row(40, 4, 2, 64, 64)
    assert not attention.suits(query, key, value, softcap=30.0)
    assert not attention.suits(query.float(), key, value)
    assert not attention.suits(query, key, value[..., :24])
    assert not attention.suits(query, key, value[..., ::2])


@here
def test_texts_have_the_same_vectors_with_and_without_it(monkeypatch):
    texts = ["a b c", "river " * 90, "What is the capital of France?", "x"]
    model = embedlm.load(dtype="bfloat16")
    compiled_ND = model.encode(texts)
    monkeypatch.setenv(compiled.SWITCH, "off")
    assert compiled.library() is None
    products_ND = model.encode(texts)
    assert (compiled_ND * products_ND).sum(1).min() > 0.9995
    assert abs(compiled_ND - products_ND).max() > 0  # it is another way


def test_the_switch_is_honoured_or_refused(monkeypatch):
    monkeypatch.setenv(compiled.SWITCH, "no")
    with pytest.raises(InputError, match="EMBEDLM_KERNELS is 'no'; set it to on or off"):
        compiled.library()


@pytest.fixture
def state_of(tmp_path_factory):
    """Return a function that says what a new process prints of its kernels.

    It has a cache of its own, and imported all but has not asked for the kernels before.
    """

    def state_of(cache, code="", piped="", **environment):
        run = (
            "from embedlm.backbone.native import attention, compiled\n"
            "assert compiled._library.cache_info().currsize == 0\n"
            f"{code}\nprint(compiled.library() is not None)"
        )
        environment = {"EMBEDLM_CACHE": str(cache), **environment}
        folder = tmp_path_factory.mktemp("process")
        done = server().run_code(run, folder=folder, stdin=piped, **environment)
        assert done.code == 0, done.err
        return done.out.split()

    return state_of


@here
def test_it_is_compiled_once(state_of, tmp_path):
    assert state_of(tmp_path) == ["True"]
    (made,) = tmp_path.glob("kernels-*/*")
    stamp = made.stat().st_mtime_ns
    assert state_of(tmp_path) == ["True"]
    assert made.stat().st_mtime_ns == stamp


@here
def test_without_a_compiler_a_folder_or_trust_there_is_none(state_of, tmp_path):
    assert state_of(tmp_path / "a", PATH=str(tmp_path), CC="") == ["False"]
    assert state_of(tmp_path / "a", PATH=str(tmp_path), CC="no-such-compiler -m64") == ["False"]
    (tmp_path / "file").write_text("")
    assert state_of(tmp_path / "file") == ["False"]
    assert state_of(tmp_path / "b") == ["True"]
    next((tmp_path / "b").glob("kernels-*")).chmod(0o777)  # whoever writes there runs code here
    assert state_of(tmp_path / "b") == ["False"]


@here
def test_a_user_whose_group_may_write_has_it_too(state_of, tmp_path):
    assert state_of(tmp_path, "import os; os.umask(0o002)") == ["True"]
    assert state_of(tmp_path) == ["True"]


@here
@pytest.mark.parametrize("fault", ["content", "rights"])
def test_a_file_that_cannot_be_trusted_is_made_anew(state_of, tmp_path, fault):
    assert state_of(tmp_path) == ["True"]
    (made,) = tmp_path.glob("kernels-*/*")
    before = made.read_bytes()
    if fault == "content":
        made.write_bytes(b"no library")
    else:
        made.chmod(0o666)
    assert state_of(tmp_path) == ["True"]
    assert made.read_bytes()[:4] == before[:4]
    assert made.stat().st_mode & 0o022 == 0


@here
def test_a_compiler_that_fails_is_passed_over(state_of, tmp_path):
    failing = tmp_path / "failing"
    failing.write_text("#!/bin/sh\nexit 1\n")
    failing.chmod(0o755)
    assert state_of(tmp_path / "cache", CC=str(failing)) == ["True"]  # by GCC


@here
@pytest.mark.parametrize("command", ["gcc '", "gcc -DNAME=\udcff", "''", "cat"])
def test_a_variable_that_is_no_compiler_is_passed_over(state_of, command, tmp_path):
    assert state_of(tmp_path, CC=command) == ["True"]


@here
def test_a_compiler_that_fails_runs_once_and_reads_nothing_that_is_piped(state_of, tmp_path):
    counting = tmp_path / "counting"
    counting.write_text(f"#!/bin/sh\necho run >> {tmp_path}/runs\ncat >> {tmp_path}/read\nexit 1\n")
    counting.chmod(0o755)
    code = "import sys; compiled.library(); print(sys.stdin.read())"
    assert state_of(tmp_path / "cache", code, "question", CC=str(counting)) == ["question", "True"]
    assert (tmp_path / "runs").read_text() == "run\n"
    assert (tmp_path / "read").read_text() == ""


@here
def test_without_a_home_there_is_none(state_of, tmp_path):
    name = "~no-such-user/cache"
    assert state_of(tmp_path, f"import os; os.environ['EMBEDLM_CACHE'] = {name!r}") == ["False"]


@here
def test_threads_that_ask_first_at_once_have_one(state_of, tmp_path):
    code = """
import threading
found = []
ask = lambda: found.append(compiled.library())
threads = [threading.Thread(target=ask) for _ in range(8)]
[one.start() for one in threads]
[one.join() for one in threads]
print(len(found), len(set(map(id, found))))
"""
    assert state_of(tmp_path, code) == ["8", "1", "True"]


@here
def test_wrong_numbers_are_noticed(monkeypatch, caplog):
    attention._proven.cache_clear()
    monkeypatch.setattr(attention, "attend", lambda *args, **more: args[4].zero_())
    query, key, value = row(4, 4, 2, 32, 32)
    try:
        assert not attention.suits(query, key, value)
        assert "wrong numbers" in caplog.text
    finally:
        attention._proven.cache_clear()


@here
def test_many_threads_at_once():
    torch.manual_seed(0)
    layout, how = Layout((20, 90, 130), causal=True), How(causal=True, scale=0.2)
    query, key, value = row(240, 4, 2, 64, 64)
    found = []

    def run():
        with torch.inference_mode():
            found.extend(attend_packed(query, key, value, layout, how) for _ in range(20))

    threads = [threading.Thread(target=run) for _ in range(6)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert len(found) == 120
    assert all(torch.equal(one, found[0]) for one in found)


def test_the_source_is_in_the_package():
    folder = Path(compiled.__file__).parent
    assert (folder / "attention.c").is_file()
    assert cpu_attention.kernel is attention
