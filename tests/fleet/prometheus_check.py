#!/usr/bin/env python3
"""The metrics with the real thing: promtool on a live scrape, and a Prometheus that scrapes inferd under load and is then asked every
query of the dashboard, of the alert rules and of the autoscaler.

    prometheus_check.py [--seconds 45] [--pace]     needs prometheus, promtool; INFERD_BUILD, INFERD_MODEL as for the end-to-end tests

--pace also measures what watching costs: a scrape, and the gaps between tokens of streams beside 32 scrapers that ask and never read.
Exit 1 if a scrape is not well-formed, a query fails or has no data, a rule is not healthy, or watching costs too much.
"""
import argparse
import contextlib
import json
import os
import pathlib
import random
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE.parent / "e2e"))

import grpc  # noqa: E402
from harness import BUILD, Server, ids_request, pb, rpc, text_request, wait_for  # noqa: E402
from identity import Authority  # noqa: E402

# The contract's list of names ("Metrics" in the API): each must be scraped.
CONTRACT = """inferd_requests_running inferd_requests_waiting inferd_waiting_tokens inferd_kv_cache_usage_ratio inferd_kv_blocks
inferd_memory_bytes inferd_build_info inferd_model_info inferd_last_step_age_seconds inferd_requests_total inferd_finish_total
inferd_prompt_tokens_total inferd_cached_prompt_tokens_total inferd_generated_tokens_total inferd_preemptions_total
inferd_steps_total inferd_time_to_first_token_seconds_count inferd_inter_token_seconds_count inferd_queue_seconds_count
inferd_request_seconds_count inferd_prompt_tokens_count inferd_output_tokens_count inferd_batch_size_count
inferd_step_seconds_count""".split()
# What the Gateway API inference extension and llm-d read, with metrics.vllm_aliases.
ALIASES = """vllm:num_requests_running vllm:num_requests_waiting vllm:kv_cache_usage_perc vllm:cache_config_info
vllm:time_to_first_token_seconds_count vllm:prompt_tokens_total vllm:generation_tokens_total""".split()
problems = []


def problem(text):
    problems.append(text)
    print("PROBLEM:", text)


# ---- load: everything that moves a counter

class Load:
    def __init__(self, server):
        self.server, self.stop, self.n = server, False, 0
        self.threads = [threading.Thread(target=f, args=(i,)) for i in range(3) for f in (self._stream, self._odd)]
        [t.start() for t in self.threads]

    def _call(self, stub, request, **kw):
        try:
            list(stub.Generate(request, timeout=30, **kw))
        except grpc.RpcError:
            pass
        self.n += 1

    def _stream(self, i):
        stub = rpc.InferenceStub(self.server.new_channel())
        rng = random.Random(i)
        while not self.stop:
            ids = [rng.randrange(100, 900) for _ in range(rng.choice((8, 64, 200)))]
            self._call(stub, ids_request(ids, rng.choice((8, 40)), sampling=pb.Sampling(temperature=0.8)))

    def _odd(self, i):
        stub = rpc.InferenceStub(self.server.new_channel())
        k = i
        while not self.stop:
            k += 1
            kind = k % 6
            if kind == 0:
                self._call(stub, text_request("The capital of France is", 30, stopping=pb.Stopping(stop=["."])))
            elif kind == 1:  # cancelled
                call = stub.Generate(ids_request([7] * 8, 500))
                with contextlib.suppress(grpc.RpcError):
                    next(call, None)
                call.cancel()
            elif kind == 2:
                self._call(stub, ids_request([7] * 8, 0, sampling=pb.Sampling(temperature=5)))  # invalid
            elif kind == 3:
                self._call(stub, pb.GenerateRequest(text="x", stopping=pb.Stopping(max_tokens=500, time_limit_ms=100)))
            elif kind == 4:
                self._call(stub, ids_request(list(range(100, 196)), 4))  # a prompt that the cache knows
            else:
                [c.cancel() for c in [stub.Generate(ids_request([9] * 64, 50)) for _ in range(12)]]  # the queue fills

    def end(self):
        self.stop = True
        [t.join() for t in self.threads]


# ---- checks

def scrape(server):
    return urllib.request.urlopen(f"http://{server.admin_address}/metrics", timeout=10).read()


def check_scrape(server, names, what):
    text = scrape(server)
    r = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True)
    # The one thing to complain about is the colon in names that others have chosen.
    said = (r.stdout + r.stderr).decode().splitlines()
    colons = [row for row in said if re.fullmatch(r"vllm:\w+ metric names should not contain ':'", row)]
    rest = [row for row in said if row and row not in colons]
    if rest or r.returncode not in ((0, 3) if colons else (0,)):
        problem(f"promtool check metrics ({what}): exit {r.returncode}: {rest}")
    missing = [n for n in names if not re.search(rb"^" + n.encode() + rb"[{ ]", text, re.M)]
    if missing:
        problem(f"{what}: not exported: {missing}")
    n = len([row for row in text.splitlines() if not row.startswith(b"#")])
    print(f"promtool check metrics, {what}: exit {r.returncode}, {len(rest)} complaints"
          f"{f' ({len(colons)} vllm: names have a colon)' if colons else ''}; {n} series, {len(text)} bytes")


class Prometheus:
    def __init__(self, folder, target):
        (folder / "prometheus.yml").write_text(json.dumps({
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(ROOT / "deploy/prometheus/alerts.yaml")],
            "scrape_configs": [{"job_name": "inferd", "static_configs": [{"targets": [target], "labels": {"namespace": "inferd"}}]}]}))
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{s.getsockname()[1]}"
        self.log = open(folder / "log", "w")
        self.process = subprocess.Popen(
            ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data",
             f"--web.listen-address={self.address}"], stdout=self.log, stderr=self.log)
        wait_for("Prometheus is up", self._is_up, 30)

    def _is_up(self):
        try:
            return urllib.request.urlopen(f"http://{self.address}/-/ready", timeout=2).status == 200
        except OSError:
            return False

    def get(self, path, **query):
        """`data` of an API answer; raises with Prometheus' own words."""
        url = f"http://{self.address}/api/v1/{path}?{urllib.parse.urlencode(query, doseq=True)}"
        try:
            answer = json.load(urllib.request.urlopen(url, timeout=20))
        except urllib.error.HTTPError as e:
            answer = json.load(e)
        if answer["status"] != "success":
            raise ValueError(answer["error"])
        return answer["data"]

    def values(self, expr):
        return [float(r["value"][1]) for r in self.get("query", query=expr)["result"]]

    def stop(self):
        self.process.terminate()
        self.process.wait(20)
        self.log.close()


def check_query(p, what, expr, needs_number=True):
    try:
        got = p.values(expr)
    except ValueError as e:
        return problem(f"{what}: {expr}: {e}")
    if not got or (needs_number and all(v != v for v in got)):
        problem(f"{what}: no data: {expr}")


def check_dashboard(p):
    board = json.loads((ROOT / "deploy/grafana/inferd.json").read_text())
    n = 0
    for panel in board["panels"]:
        for target in panel.get("targets", []):
            expr = target["expr"].replace("$__rate_interval", "15s").replace("$instance", ".*")
            if "$" in expr:
                problem(f"{panel['title']}: a variable that is not known here: {expr}")
            check_query(p, f"dashboard, {panel['title']}", expr)
            n += 1
    for variable in board["templating"]["list"]:
        found = re.fullmatch(r"label_values\((\w+), *(\w+)\)", variable["query"])
        if found and not p.get(f"label/{found[2]}/values", **{"match[]": found[1]}):
            problem(f"dashboard variable {variable['name']} has no values")
    print(f"dashboard: {n} queries in {len(board['panels'])} panels")


def check_alerts(p):
    """Each rule parses and is healthy; what it is computed from has data. (That it fires is not looked for.)"""
    wait_for("rules were evaluated", lambda: all(
        r["health"] != "unknown" for g in p.get("rules")["groups"] for r in g["rules"]), 30)
    rules = [r for g in p.get("rules")["groups"] for r in g["rules"]]
    for r in rules:
        if r["health"] != "ok":
            problem(f"alert {r['name']}: {r['health']} {r.get('lastError')}")
        p.get("query", query=r["query"])
        for selector in set(re.findall(r"(?:inferd_\w+|process_\w+|\bup\b)(?:\{[^}]*\})?", r["query"])):
            check_query(p, f"alert {r['name']}", selector)
        if r["state"] == "firing":
            print(f"  fires: {r['name']}")
    print(f"alerts: {len(rules)} rules healthy, their metrics have data")


# ---- what watching costs

def cpu_s(server):
    user, system = pathlib.Path(f"/proc/{server.process.pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def measure_scrape(server, n=400):
    times, before = [], cpu_s(server)
    for _ in range(n):
        start = time.perf_counter()
        scrape(server)
        times.append(time.perf_counter() - start)
    cpu_us = (cpu_s(server) - before) / n * 1e6
    times.sort()
    print(f"a scrape of an idle server: median {times[n // 2] * 1e3:.2f} ms, p99 {times[n * 99 // 100] * 1e3:.2f} ms at the client; "
          f"{cpu_us:.0f} us of server CPU")
    if cpu_us > 2000:
        problem("a scrape costs more than 2 ms of CPU")


def gaps(server, seconds):
    """Gaps between messages of two streams, in ms, sorted."""
    out, end = [], time.monotonic() + seconds
    stub = rpc.InferenceStub(server.channel)

    def run(i):
        while time.monotonic() < end:
            last = None
            for _ in stub.Generate(ids_request([20 + i] * 8, 200)):
                now = time.perf_counter()
                if last:
                    out.append((now - last) * 1000)
                last = now

    threads = [threading.Thread(target=run, args=(i,)) for i in range(2)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    return sorted(out)


def stalled_scrapers(server, n):
    """n connections that ask for /metrics as often as they can send, with the smallest window, and read nothing."""
    host, port = server.admin_address.rsplit(":", 1)
    conns = []
    for _ in range(n):
        c = socket.socket()
        c.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        c.connect((host, int(port)))
        c.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 20)
        conns.append(c)
    return conns


def measure_pace(server, rounds=3, seconds=4):
    quiet, beside = [], []
    for _ in range(rounds):  # in turns, so that a change of the machine's pace meets both
        quiet += gaps(server, seconds)
        conns = stalled_scrapers(server, 32)
        rss = server.rss_bytes()
        beside += gaps(server, seconds)
        grown = server.rss_bytes() - rss
        [c.close() for c in conns]
    quiet.sort()
    beside.sort()
    row = lambda v: " ".join(f"p{q} {v[len(v) * q // 100]:.2f}" for q in (50, 90, 99))  # noqa: E731
    print(f"gaps between tokens, 2 streams, ms: alone {row(quiet)} ({len(quiet)}); beside 32 stalled scrapers {row(beside)} "
          f"({len(beside)}); memory grew by {grown / 2**20:.1f} MiB")
    if beside[len(beside) // 2] > 1.1 * quiet[len(quiet) // 2] or beside[len(beside) * 99 // 100] > 1.5 * quiet[len(quiet) * 99 // 100]:
        problem("stalled scrapers slow the tokens")
    if scrape(server) == b"":
        problem("no scrape afterwards")


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--seconds", type=int, default=45)
    a.add_argument("--pace", action="store_true")
    o = a.parse_args()
    with tempfile.TemporaryDirectory(prefix="inferd-prometheus-") as tmp:
        folder = pathlib.Path(tmp)
        cert, key = Authority(folder, "authority").issue("server")
        (folder / "crt").write_bytes(cert)
        (folder / "key").write_bytes(key)
        # TLS, so that there is a certificate to watch
        sets = {"engine.max_sequences": 6, "engine.kv_blocks": 96, "queue.max_requests": 8, "metrics.vllm_aliases": True,
                "server.tls.cert": folder / "crt", "server.tls.key": folder / "key"}
        roots = grpc.ssl_channel_credentials((folder / "authority.pem").read_bytes())
        with Server(sets, admin=True, credentials=roots) as s:
            prometheus = Prometheus(folder, s.admin_address)
            load = Load(s)
            try:
                time.sleep(o.seconds)
                check_scrape(s, CONTRACT + ALIASES, "under load, with vllm aliases")
                wait_for("scrapes", lambda: (prometheus.values('scrape_samples_scraped{job="inferd"}') or [0])[0] > 100, 20)
                check_dashboard(prometheus)
                check_alerts(prometheus)
                for query in re.findall(r"query: (.+)", (ROOT / "deploy/kubernetes/extras/scaledobject.yaml").read_text()):
                    check_query(prometheus, "autoscaler", query.strip())
                duration = max(prometheus.values('max_over_time(scrape_duration_seconds{job="inferd"}[1m])'))
                ups = prometheus.values('min_over_time(up{job="inferd"}[1m])')
                print(f"{o.seconds} s under load ({load.n} calls), a scrape a second: slowest {duration * 1e3:.0f} ms, "
                      f"lost {'none' if ups == [1.0] else ups}")
                try:
                    prometheus.values("rate(inferd_steps_total)")
                    problem("a wrong query was not refused: this program proves nothing")
                except ValueError:
                    pass
            finally:
                load.end()
                prometheus.stop()
        with Server({"engine.kv_blocks": 256}, admin=True) as s:
            check_scrape(s, CONTRACT, "idle, without aliases")
            if o.pace:
                measure_scrape(s)
                measure_pace(s)
    print(f"{BUILD.name}: {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
