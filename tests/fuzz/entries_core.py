"""Parsers of core: configuration space, VF attributes, policy files, names."""

from __future__ import annotations

from sriovd import keepsakes
from sriovd.backend.base import Severity
from sriovd.backend.vf_attributes import parse_report, parse_request, parse_value
from sriovd.core import rules
from sriovd.core.errors import InvalidArgument
from sriovd.core.lease.cdi import check_qualified_name, lease_of_file
from sriovd.core.lease.choose import class_digits
from sriovd.core.policy.files import Found, Listing, Text
from sriovd.core.policy.globs import can_match_address, can_match_slot
from sriovd.core.policy.policy_set import decide_set
from sriovd.core.policy.ranges import parse_spans
from sriovd.core.recovery.bundle_size import trim_config
from sriovd.core.recovery.decode import describe_config, is_in_trouble, summarize_config
from sriovd.core.recovery.decode_tlp import describe_tlp
from sriovd.core.recovery.probe import is_alive, is_bus_master, read_signs
from sriovd.pci import AddressError, PciAddress, PciSlot
from tests.fuzz.entry import NO_ERRORS, Entry, to_name, to_text
from tests.unit.core.recovery.samples import PF, TLP, VF, load_configs, log_error

RECOVERY = "sriovd.core.recovery"
_REPORT = "link mtu=1500 min-mtu=68 max-mtu=9216 up=1\n0 mac=02:00:00:00:00:01 vlan=0 trust=off\n1 qos=3"


def configs() -> tuple[bytes, ...]:
    configs = load_configs()
    return (*configs.values(), log_error(configs[PF], 0x4000, TLP), configs[VF][:256], b"\xff" * 64)


def _describe(config: bytes) -> object:
    return describe_config(config), summarize_config(config), is_in_trouble(config), trim_config(config)


def _probe(config: bytes) -> object:
    read = config.hex()  # as a helper tells it
    return read_signs(read), is_alive(read[:8]), is_bus_master(read[:8])


def _tlp(data: bytes) -> object:
    return describe_tlp([int.from_bytes(data[at : at + 4], "big") for at in range(0, len(data), 4)])


def _attribute_value(data: bytes) -> object:
    name, _, value = to_text(data).partition("=")
    return parse_value(name, value)


def _policy(data: bytes) -> object:
    try:
        text = data.decode()
    except UnicodeDecodeError:  # which files.py refuses
        return None
    return decide_set(Listing((Found("a.toml", (Text("/etc/a.toml", text),)),), (), True), {})


def policies() -> tuple[bytes, ...]:
    whole = """[match]\naddress = "0000:01:00.*"\nvendor = 0x8086\nclass = "network"\n[functions]
num-vfs = 7\ndriver = "vfio-pci"\n[vf.defaults]\nspoof-check = true\n[vf."0-3"]\nvlan = 100
mac = "02:00:00:00:00:01"\n[recovery]\nrungs = ["kernel", "function-reset"]\n"""
    several = '[[policy]]\nmatch.driver = ["igb", \'i*\']\nfunctions = {num-vfs = 1}\n[[policy]]\n# "x"\n'
    return whole.encode(), several.encode(), b'a = """\n\\u00e9"""\nb = 1979-05-27T07:32:00Z\nc = [1, 2,]\n'


def _globs(data: bytes) -> object:
    return can_match_address(to_text(data)), can_match_slot(to_text(data))


def _names(data: bytes) -> object:
    """Files' and descriptors' names: ours or not, never an error."""
    return lease_of_file(to_name(data)), keepsakes._NAME.fullmatch(to_name(data))


def _client_names(data: bytes) -> None:
    text = to_text(data)
    for check in (rules.check_driver_name, class_digits, Severity):
        try:
            check(text)
        except (InvalidArgument, ValueError):
            continue


ADDRESS_SEEDS = (b"0000:01:00.0", b"10000:ff:1f.7", b"0000:01:00", b"vfio-pci", b"0x0200", b"network")

ENTRIES = (
    Entry(
        "config-space",
        _describe,
        NO_ERRORS,
        configs,
        (
            f"{RECOVERY}.decode",
            f"{RECOVERY}.decode_space",
            f"{RECOVERY}.decode_header",
            f"{RECOVERY}.decode_aer",
            f"{RECOVERY}.decode_express",
            f"{RECOVERY}.bundle_size",
        ),
        max_bytes=8192,
    ),
    Entry(
        "probe", _probe, NO_ERRORS, configs, (f"{RECOVERY}.probe", f"{RECOVERY}.forensics"), max_bytes=4096
    ),
    Entry(
        "tlp-header",
        _tlp,
        NO_ERRORS,
        lambda: (b"".join(word.to_bytes(4, "big") for word in TLP),),
        (f"{RECOVERY}.decode_tlp",),
        max_bytes=256,
    ),
    Entry(
        "attribute-value",
        _attribute_value,
        (ValueError, KeyError),
        lambda: (b"mac=02:00:00:00:00:01", b"vlan=100", b"trust=on", b"link-state=auto", b"node-guid=00"),
        ("sriovd.backend.vf_attributes",),
    ),
    Entry(
        "attribute-request",
        lambda data: parse_request(to_text(data)),
        (ValueError,),
        lambda: (b"3 vlan 100 2 802.1ad", b"0 trust on", b"1 rate 1 2", b"1 mac 02:00:00:00:00:01"),
        ("sriovd.backend.vf_attributes",),
        (b" ", b"vlan", b"802.1Q", b"-1"),
    ),
    Entry(
        "link-report",
        lambda data: parse_report(to_text(data)),
        (ValueError, KeyError),
        lambda: (_REPORT.encode(),),
        ("sriovd.backend.vf_attributes",),
        (b"\n", b" ", b"=", b"vfs=1"),
    ),
    Entry(
        "policy",
        _policy,
        NO_ERRORS,
        policies,
        (
            "sriovd.core.policy.document",
            "sriovd.core.policy.locate",
            "sriovd.core.policy.files",
            "sriovd.core.policy.match",
            "sriovd.core.policy.tables",
            "sriovd.core.attributes",
        ),
        (
            b"[",
            b"]",
            b"[[",
            b"]]",
            b".",
            b'"',
            b"'",
            b'"""',
            b"'''",
            b"=",
            b"{",
            b"}",
            b"\n",
            b"#",
            b"\\",
            b"policy",
            b"vf",
            b"0x",
            b"1_0",
            b"inf",
            b"\xef\xbb\xbf",
        ),
        1 << 16,
        quick_inputs=600,
    ),
    Entry(
        "vf-ranges",
        lambda data: parse_spans(to_text(data)),
        (ValueError,),
        lambda: (b"0,2,4-6", b" 1 - 2 , 65534"),
        ("sriovd.core.policy.ranges",),
        (b",", b"-", b" "),
    ),
    Entry(
        "globs",
        _globs,
        NO_ERRORS,
        lambda: (b"0000:01:00.*", b"[0-9]*:?", b"[!]a]"),
        ("sriovd.core.policy.globs",),
        (b"*", b"[", b"]", b"?", b"[!]"),
        max_bytes=64,  # core/policy/schema.py takes no longer ones
        quick_inputs=600,
    ),
    Entry(
        "pci-address",
        lambda data: PciAddress.parse(to_text(data)),
        (AddressError,),
        lambda: ADDRESS_SEEDS,
        ("sriovd.pci",),
        (b":", b".", b"\xd9\xa3"),
    ),
    Entry(
        "pci-slot",
        lambda data: PciSlot.parse(to_text(data)),
        (AddressError,),
        lambda: ADDRESS_SEEDS,
        ("sriovd.pci",),
        (b":", b"."),
    ),
    Entry(
        "file-names",
        _names,
        NO_ERRORS,
        lambda: (b"sriovd.org-vf_lease-7.json", b"lease-12", b"lease-9999999999999999999"),
        ("sriovd.core.lease.cdi", "sriovd.keepsakes"),
    ),
    Entry(
        "cdi-name",
        lambda data: check_qualified_name(to_text(data)),
        (ValueError,),
        lambda: (b"sriovd.org/vf=lease-7",),
        ("sriovd.core.lease.cdi",),
        (b"/", b"=", b"-", b"_"),
    ),
    Entry(
        "client-names",
        _client_names,
        NO_ERRORS,
        lambda: ADDRESS_SEEDS,
        ("sriovd.core.rules", "sriovd.core.lease.choose"),
    ),
)
