"""What tests of identity share: every method that the port answers, tokens files, certificates by openssl(1)."""
import datetime
import hashlib
import subprocess

import grpc
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from harness import PATIENCE_S, pb

GENERATE = "/inferd.v1.Inference/Generate"
SHORT = pb.GenerateRequest(token_ids=pb.TokenIds(ids=[5, 6, 7]), stopping=pb.Stopping(max_tokens=1)).SerializeToString()
LIST_SERVICES = reflection_pb2.ServerReflectionRequest(list_services="").SerializeToString()
PROBE = health_pb2.HealthCheckRequest(service="liveness").SerializeToString()

# path: (kind, request). Kinds: unary, stream (one request, several answers), talk (both ways), watch (has no end of its own).
METHODS = {
    GENERATE: ("stream", SHORT),
    "/inferd.v1.Inference/Tokenize": ("unary", pb.TokenizeRequest(text="hello").SerializeToString()),
    "/inferd.v1.Inference/Detokenize": ("unary", pb.DetokenizeRequest(token_ids=[5]).SerializeToString()),
    "/inferd.v1.Inference/ModelInfo": ("unary", b""),
    "/inferd.v1.Inference/EngineStatus": ("unary", b""),
    "/inferd.v1.Inference/Abort": ("unary", pb.AbortRequest(request_ids=["nobody"]).SerializeToString()),
    "/grpc.health.v1.Health/Check": ("unary", PROBE),
    "/grpc.health.v1.Health/List": ("unary", b""),
    "/grpc.health.v1.Health/Watch": ("watch", PROBE),
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo": ("talk", LIST_SERVICES),
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": ("talk", LIST_SERVICES),
    "/xds.service.orca.v3.OpenRcaService/StreamCoreMetrics": ("watch", b""),
}


def call(channel, path, metadata=()):
    """Calls a method with its request; returns the bytes that came (of a watch: the first message)."""
    kind, request = METHODS[path]
    kw = {"metadata": tuple(metadata), "timeout": PATIENCE_S}
    if kind == "unary":
        return [channel.unary_unary(path)(request, **kw)]
    if kind == "talk":
        return list(channel.stream_stream(path)(iter([request]), **kw))
    stream = channel.unary_stream(path)(request, **kw)
    if kind == "stream":
        return list(stream)
    first = [next(stream)]
    stream.cancel()
    return first


def bearer(token):
    return (("authorization", f"Bearer {token}"),)


def line(token, tenant, *options):
    return " ".join([f"sha256:{hashlib.sha256(token.encode()).hexdigest()}", tenant, *options]) + "\n"


class Tenant:
    """Stubs that carry a token."""

    def __init__(self, channel, token):
        self.channel, self.metadata = channel, bearer(token)

    def generate(self, request, **kw):
        kw.setdefault("timeout", 5 * PATIENCE_S)
        return self.channel.unary_stream(GENERATE, pb.GenerateRequest.SerializeToString, pb.GenerateResponse.FromString)(
            request, metadata=self.metadata, **kw)

    def _unary(self, name, request, answer):
        return self.channel.unary_unary(f"/inferd.v1.Inference/{name}", type(request).SerializeToString, answer.FromString)(
            request, metadata=self.metadata, timeout=PATIENCE_S)

    def abort(self, *ids):
        return list(self._unary("Abort", pb.AbortRequest(request_ids=ids), pb.AbortResponse).aborted)

    def status(self):
        return self._unary("EngineStatus", pb.EngineStatusRequest(), pb.EngineStatusResponse)


# ---- certificates

def _openssl(*args, stdin=None):
    subprocess.run(["openssl", *map(str, args)], check=True, capture_output=True, input=stdin)


class Authority:
    """A CA in a folder; issue() makes leaf certificates."""

    def __init__(self, folder, name):
        self.folder, self.name = folder, name
        self.cert, self.key = folder / f"{name}.pem", folder / f"{name}.key"
        _openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", self.key,
                 "-out", self.cert, "-days", 30, "-subj", f"/CN={name}")
        self.n = 0

    def issue(self, common_name, days=30, san="IP:127.0.0.1,DNS:localhost", key=("ec", "-pkeyopt",
              "ec_paramgen_curve:prime256v1"), start=None, subject=None):
        """Returns (certificate, key) as bytes; start: seconds from now at which it begins to be valid."""
        self.n += 1
        base = self.folder / f"{self.name}-{self.n}"
        _openssl("req", "-newkey", *key, "-nodes", "-keyout", f"{base}.key", "-out", f"{base}.csr", "-subj", subject or f"/CN={common_name}")
        (self.folder / "ext").write_text(f"subjectAltName={san}\nbasicConstraints=CA:FALSE\n")
        if start is None and days > 0:
            _openssl("x509", "-req", "-in", f"{base}.csr", "-CA", self.cert, "-CAkey", self.key, "-CAcreateserial", "-days", days,
                     "-extfile", self.folder / "ext", "-out", f"{base}.pem")
        else:  # openssl x509 takes no dates: openssl ca does
            now = datetime.datetime.now(datetime.timezone.utc)
            begin = now + datetime.timedelta(seconds=start if start is not None else -86400 * 10)
            end = begin + datetime.timedelta(days=abs(days) if start is not None else 9)
            (self.folder / "index.txt").write_text("")
            (self.folder / "ca.cnf").write_text(
                f"[ca]\ndefault_ca=d\n[d]\nnew_certs_dir={self.folder}\ndatabase={self.folder}/index.txt\nrand_serial=yes\n"
                f"default_md=sha256\npolicy=p\nemail_in_dn=no\n[p]\ncommonName=supplied\n")
            stamp = "%Y%m%d%H%M%SZ"
            _openssl("ca", "-batch", "-config", self.folder / "ca.cnf", "-cert", self.cert, "-keyfile", self.key, "-in",
                     f"{base}.csr", "-out", f"{base}.pem", "-startdate", begin.strftime(stamp), "-enddate", end.strftime(stamp),
                     "-extfile", self.folder / "ext", "-notext")
        return (open(f"{base}.pem", "rb").read(), open(f"{base}.key", "rb").read())


def serial_of(address):
    """Serial number of the certificate that a server shows to a new connection."""
    host, port = address.rsplit(":", 1)
    shown = subprocess.run(["openssl", "s_client", "-connect", f"{host}:{port}", "-alpn", "h2"], input=b"", capture_output=True)
    got = subprocess.run(["openssl", "x509", "-noout", "-serial"], input=shown.stdout, capture_output=True)
    return got.stdout.decode().strip()


def serial_in(pem):
    return subprocess.run(["openssl", "x509", "-noout", "-serial"], input=pem, capture_output=True).stdout.decode().strip()


def secure_channel(address, roots, client=None, options=()):
    credentials = grpc.ssl_channel_credentials(roots, client[1] if client else None, client[0] if client else None)
    return grpc.secure_channel(address, credentials, [("grpc.use_local_subchannel_pool", 1), *options])
