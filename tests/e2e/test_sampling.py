"""What is drawn over the wire has the distribution that it should have.

The reference is the goldens' 70 exact distributions. Requests cannot say what was already generated, so a case whose penalties look
at the output is judged through `distribution` below, which is itself held against all 70. Seeds are fixed and the CPU's draws do not
depend on the machine's load, so nothing here passes or fails by chance. INFERD_DRAWS multiplies the number of draws (default 1).
"""
import base64
import itertools
import json
import math
import os
import random
import struct

import grpc
import pytest

from harness import GOLDENS, PATIENCE_S, ROOT, Server, generate, goldens, ids_request, pb, refused
from speaker import write_speaker, write_with_tokenizer

DATA = goldens("sampling/sampling.json")
VECTORS = sorted(DATA["logits"])
FACTOR = int(os.environ.get("INFERD_DRAWS", "1"))
SIGMA_MAX = 4.75  # one in a million
SETS = {"engine.threads": 1, "engine.kv_blocks": 1024, "engine.max_sequences": 16}


def params_of(case):
    return {**DATA["default_params"], **case["params"]}


def distribution(logits, prompt, output, p):
    """[(id, probability)], most likely first, ties by id: the order of the API's contract, in float64."""
    x = list(logits)
    for i, bias in p["logit_bias"].items():
        x[int(i)] += bias
    for i in set(prompt) | set(output):
        x[i] = x[i] / p["repetition_penalty"] if x[i] > 0 else x[i] * p["repetition_penalty"]
    for i in set(output):
        x[i] -= p["frequency_penalty"] * output.count(i) + p["presence_penalty"]
    order = sorted(range(len(x)), key=lambda i: (-x[i], i))
    if p["temperature"] == 0:
        return [(order[0], 1.0)]
    top = x[order[0]]
    kept = [(i, math.exp((x[i] - top) / p["temperature"])) for i in order]
    kept = [(i, w) for i, w in kept if w >= p["min_p"] and w > 0]
    if 0 < p["top_k"] < len(kept):
        last = x[kept[p["top_k"] - 1][0]]
        kept = [(i, w) for i, w in kept if x[i] >= last]
    total, reached = sum(w for _, w in kept), 0.0
    for n, (_, w) in enumerate(kept, 1):
        reached += w / total
        if reached >= p["top_p"] < 1:
            kept = kept[:n]
            break
    total = sum(w for _, w in kept)
    return [(i, w / total) for i, w in kept]


def deviate(counts, expected):
    """Chi-square as a normal deviate (Wilson-Hilferty); bins of fewer than 5 expected are one bin."""
    rest_c = rest_e = x = 0.0
    bins = 0
    for c, e in itertools.chain(zip(counts, expected), [(None, None)]):
        if c is None:
            c, e = rest_c, rest_e
        elif e < 5:
            rest_c, rest_e = rest_c + c, rest_e + e
            continue
        if e > 1e-9:
            x, bins = x + (c - e) ** 2 / e, bins + 1
    if bins < 2:
        return 0.0
    a = 2 / (9 * (bins - 1))
    return ((x / (bins - 1)) ** (1 / 3) - (1 - a)) / math.sqrt(a)


def sampling_of(p, seed):
    s = pb.Sampling(temperature=p["temperature"], top_k=max(p["top_k"], 0), top_p=p["top_p"], min_p=p["min_p"], seed=seed,
                    repetition_penalty=p["repetition_penalty"], frequency_penalty=p["frequency_penalty"],
                    presence_penalty=p["presence_penalty"])
    for i, bias in p["logit_bias"].items():
        s.logit_bias.add(token_id=int(i), bias=bias)
    return s


def streams(server, prompt, p, n_requests, n_tokens):
    """Token lists, eight a request; seeds 1, 2, ..."""
    for seed in range(1, n_requests * FACTOR + 1):
        a = generate(server, ids_request(prompt, n_tokens, choices=8, sampling=sampling_of(p, seed)))
        for i in range(8):
            assert len(a.ids[i]) == n_tokens
            yield a.ids[i]


def expressible(p):
    return p["temperature"] <= 2 and all(abs(b) <= 100 for b in p["logit_bias"].values())


def judge_by_golden(server, case, p, what):
    """Penalties do not depend on what is output or prompt: the golden distribution itself."""
    prompt = case["prompt_ids"] + case["output_ids"]
    fixed = p["repetition_penalty"] == 1  # then every token of a stream is a draw from it, not only the first
    drawn = list(itertools.chain.from_iterable(streams(server, prompt or [0], p, 4 if fixed else 64, 250 if fixed else 1)))
    counts = [drawn.count(i) for i in case["kept_ids"]]
    assert sum(counts) == len(drawn), f"{what}: a token outside the kept set"
    d = deviate(counts, [q * len(drawn) for q in case["probs"]])
    print(f"{what}: {d:.2f} sigma over {len(drawn)} draws")
    assert d < SIGMA_MAX


def judge_by_rules(server, case, logits, p, what):
    """Every token's place in its own distribution, spread evenly over the token's interval, must be uniform."""
    prompt, dice, places = case["prompt_ids"] or [0], random.Random(1), []
    large = len(logits) > 100
    for tokens in streams(server, prompt, p, 1 if large else 4, 40):
        for n, token in enumerate(tokens):
            at = 0.0
            for i, q in distribution(logits, prompt, tokens[:n], p):
                if i == token:
                    break
                at += q
            else:
                raise AssertionError(f"{what}: token {token} outside the kept set after {tokens[:n]}")
            places.append(at + q * dice.random())
    bins = [0] * 16
    for v in places:
        bins[min(int(v * 16), 15)] += 1
    d = deviate(bins, [len(places) / 16] * 16)
    print(f"{what}: {d:.2f} sigma over {len(places)} draws")
    assert d < SIGMA_MAX


@pytest.fixture(scope="module", params=VECTORS)
def speaker(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("speaker") / f"{request.param}.gguf"
    write_speaker(path, DATA["logits"][request.param])
    with Server(SETS, model=path) as server:
        yield request.param, server
        server.assert_idle()


def test_the_rules_reproduce_the_goldens():
    for i, case in enumerate(DATA["cases"]):
        got = distribution(DATA["logits"][case["logits"]], case["prompt_ids"], case["output_ids"], params_of(case))
        assert [k for k, _ in got] == case["kept_ids"], i
        assert max(abs(q - r) for (_, q), r in zip(got, case["probs"])) < 1e-9, i


def test_draws_have_the_right_distribution(speaker):
    name, server = speaker
    n_judged = 0
    for i, case in enumerate(DATA["cases"]):
        if case["logits"] != name:
            continue
        p, what = params_of(case), f"case {i} ({name}, {case['params']})"
        if not expressible(p):
            refused(lambda: server.stub.Generate(ids_request([0], 1, sampling=sampling_of(p, 1))), grpc.StatusCode.INVALID_ARGUMENT)
        elif p["frequency_penalty"] == 0 and p["presence_penalty"] == 0:
            judge_by_golden(server, case, p, what)
            n_judged += 1
        else:
            judge_by_rules(server, case, DATA["logits"][name], p, what)
            n_judged += 1
    assert n_judged > 0


def test_a_wrong_distribution_is_seen(speaker):
    """The detector detects: the same draws against a temperature that is off by half."""
    name, server = speaker
    logits, p = DATA["logits"][name], DATA["default_params"]
    wrong = distribution(logits, [], [], {**p, "temperature": 1.5})
    right = distribution(logits, [], [], p)
    drawn = list(itertools.chain.from_iterable(streams(server, [0], p, 4, 250)))
    sigma = [deviate([drawn.count(i) for i, _ in d], [q * len(drawn) for _, q in d]) for d in (right, wrong)]
    assert sigma[0] < SIGMA_MAX
    assert sigma[1] > SIGMA_MAX or name in ("flat32", "huge32", "peak1000"), sigma  # those look alike at any temperature


def test_seeds_reproduce_and_differ(speaker, tmp_path):
    name, server = speaker
    p, logits = DATA["default_params"], DATA["logits"][name]
    first = list(streams(server, [0], p, 2, 20))
    assert list(streams(server, [0], p, 2, 20)) == first
    write_speaker(tmp_path / "again.gguf", logits)
    with Server({**SETS, "engine.threads": 2}, model=tmp_path / "again.gguf") as other:  # another process, other threads
        assert list(streams(other, [0], p, 2, 20)) == first
    certain = max(q for _, q in distribution(logits, [], [], p)) > 0.5
    assert certain or len({tuple(s) for s in first}) == len(first)


def test_logprobs_are_of_the_raw_logits(speaker):
    """Before bias, penalties and temperature; natural logarithm; rank and the most likely ones too."""
    name, server = speaker
    x = DATA["logits"][name]
    z = max(x) + math.log(sum(math.exp(v - max(x)) for v in x))
    s = pb.Sampling(temperature=2, seed=3, repetition_penalty=1.5, presence_penalty=1, logit_bias=[pb.LogitBias(token_id=1, bias=2)])
    a = generate(server, ids_request([0, 1, 2], 40, sampling=s, output=pb.Output(logprobs=True, prompt_logprobs=True, top_logprobs=20)))
    for e in list(a.logprobs[0]) + list(a.prompt.logprobs)[1:]:
        want = x[e.token_id] - z
        assert abs(e.logprob - want) <= max(1e-3, 1e-6 * abs(want)), (name, e.token_id, e.logprob, want)
        assert sum(v > x[e.token_id] for v in x) < e.rank <= sum(v >= x[e.token_id] for v in x)
        for t, v in zip(e.top, sorted(x, reverse=True)):
            assert x[t.token_id] == v and abs(t.logprob - (v - z)) <= max(1e-3, 1e-6 * abs(v - z))


def reference_models():
    """Models with a float64 forward pass: the repository's own, and the shared ones where they lie beside it."""
    own = [ROOT / f"tests/data/models/{m}.gguf" for m in ("llama-freqs", "llama-window", "qwen2-yarn", "qwen3-keylen")]
    shared = [GOLDENS / f"models/{m}.gguf" for m in ("llama-mha", "llama3-ropefreqs", "qwen2-gqa7", "qwen3", "phi3-gqa",
                                                     "phi3-partial-tied")]
    return own + [path for path in shared if path.exists()]


@pytest.mark.parametrize("model", reference_models(), ids=lambda path: path.stem)
def test_logprobs_equal_the_reference_models(model, tmp_path):
    """At every 16th position of each prompt, over the wire."""
    worst, n = 0.0, 0
    prompts = json.loads(model.with_suffix(".json").read_text())["prompts"]
    if model.is_relative_to(ROOT):
        n_vocab = len(base64.b64decode(prompts[0]["last_logits_f32_b64"])) // 4
        write_with_tokenizer(tmp_path / model.name, model, n_vocab)
        model = tmp_path / model.name
    with Server({"engine.kv_blocks": 64, "engine.threads": 1}, model=model) as server:
        for prompt in prompts:
            a = generate(server, ids_request(prompt["ids"], 1, output=pb.Output(logprobs=True, prompt_logprobs=True, top_logprobs=20)),
                         timeout=5 * PATIENCE_S)
            after = list(a.prompt.logprobs)[1:] + list(a.logprobs[0])  # after[i]: what comes after token i
            raw = base64.b64decode(prompt["last_logits_f32_b64"])
            logits = struct.unpack(f"<{len(raw) // 4}f", raw)
            assert a.tokens[0] == logits.index(max(logits))
            for ref in prompt["top20"]:
                got = {t.token_id: t.logprob for t in after[ref["pos"]].top}
                for i, want in zip(ref["ids"], ref["logprobs"]):
                    if i in got:  # the twentieth may tie with the next
                        worst, n = max(worst, abs(got[i] - want)), n + 1
    print(f"{model.stem}: {n} log-probabilities, worst |d| {worst:.1e}")
    assert n >= 160 and worst < 1e-3, (worst, n)
