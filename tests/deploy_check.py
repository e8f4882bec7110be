#!/usr/bin/env python3
"""Validates deploy/: manifests against the Kubernetes schemas, references between them, the dashboard's metric names.

    deploy_check.py        needs PyYAML and kubernetes-validate (PyPI)
"""
import json
import re
import sys
from pathlib import Path

import kubernetes_validate
import yaml

ROOT = Path(__file__).resolve().parent.parent
CRDS = {"ServiceMonitor", "ScaledObject", "InferencePool", "Kustomization"}  # not part of Kubernetes' own schemas
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
            if doc["kind"] == "Kustomization":
                for ref in doc.get("resources", []):
                    if not (path.parent / ref).exists():
                        problems.append(f"{path}: {ref} does not exist")
            if doc["kind"] in CRDS:
                continue
            try:
                kubernetes_validate.validate(doc, "1.30", strict=True)
            except Exception as error:  # the library raises several unrelated types
                problems.append(f"{path}: {error}")
    return n


def check_probe_arithmetic():
    base = ROOT / "deploy/kubernetes/base"
    spec = yaml.safe_load((base / "deployment.yaml").read_text())["spec"]["template"]["spec"]
    server = yaml.safe_load((base / "inferd.yaml").read_text())["server"]
    if spec["terminationGracePeriodSeconds"] < server["drain_delay_s"] + server["drain_s"] + 10:
        problems.append("terminationGracePeriodSeconds is shorter than the drain")


def check_metric_names():
    """Every inferd_* name in the dashboard and the alerts is one that the server exports."""
    exported = set(re.findall(r"\binferd_[a-z_]+", "\n".join(p.read_text() for p in (ROOT / "server").glob("*.c"))))
    used = re.findall(r"\binferd_[a-z_]+", (ROOT / "deploy/grafana/inferd.json").read_text() +
                      (ROOT / "deploy/prometheus/alerts.yaml").read_text() +
                      (ROOT / "deploy/kubernetes/extras/scaledobject.yaml").read_text())
    for name in sorted(set(used)):
        if re.sub(r"_(bucket|sum|count)$", "", name) not in exported:
            problems.append(f"{name} is used in deploy/ but not exported")
    return len(set(used))


json.loads((ROOT / "deploy/grafana/inferd.json").read_text())
n_manifests, n_metrics = check_manifests(), check_metric_names()
check_probe_arithmetic()
for line in problems:
    print(line)
print(f"{n_manifests} manifests, {n_metrics} metrics, {len(problems)} problems")
sys.exit(1 if problems else 0)
