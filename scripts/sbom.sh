#!/usr/bin/env bash
# SPDX 2.3 (JSON) list of what a built inferd contains: Debian packages behind its libraries, and the bundled gRPC core.
#   scripts/sbom.sh BINARY
set -euo pipefail
binary="$1"
version="$("$binary" --version | head -1)"
python3 - "$binary" "$version" <<'PY'
import hashlib, json, subprocess, sys, datetime
binary, version = sys.argv[1], sys.argv[2]
digest = hashlib.sha256(open(binary, "rb").read()).hexdigest()
names = ["libprotobuf-c1", "libyaml-0-2", "libmicrohttpd12", "libutf8proc2", "libjansson4", "libssl3", "libedit2", "zlib1g", "libgrpc29",
         "libc6", "libstdc++6"]
packages = [{"SPDXID": "SPDXRef-inferd", "name": "inferd", "versionInfo": version, "downloadLocation": "NOASSERTION",
             "checksums": [{"algorithm": "SHA256", "checksumValue": digest}]}]
for name in names:
    query = subprocess.run(["dpkg-query", "-W", "-f", "${Version}", name], capture_output=True, text=True)
    if query.returncode == 0 and query.stdout:
        packages.append({"SPDXID": "SPDXRef-" + name.replace("+", "p"), "name": name, "versionInfo": query.stdout,
                         "downloadLocation": "NOASSERTION"})
if b"1.85.1" in open(binary, "rb").read():
    packages.append({"SPDXID": "SPDXRef-grpc", "name": "grpc-core", "versionInfo": "1.85.1", "downloadLocation": "NOASSERTION"})
json.dump({"spdxVersion": "SPDX-2.3", "dataLicense": "CC0-1.0", "SPDXID": "SPDXRef-DOCUMENT", "name": "inferd",
           "documentNamespace": f"urn:inferd:{digest}",
           "creationInfo": {"created": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
                            "creators": ["Tool: inferd-sbom"]},
           "packages": packages,
           "relationships": [{"spdxElementId": "SPDXRef-DOCUMENT", "relationshipType": "DESCRIBES", "relatedSpdxElement": "SPDXRef-inferd"}]},
          sys.stdout, indent=1)
PY
