"""What lspci prints, taken apart.

Rule: pure. A text is lspci's version and then a block for each function, an empty line after each.
"""

from __future__ import annotations

from collections.abc import Collection

# Lines that lspci has printed alike for years; the rest of a block is worded anew in every other version.
STABLE = (
    "Control:", "Status:", "Latency:", "Interrupt:", "NUMA node:", "IOMMU group:", "Region ", "Bus:",
    "Memory behind bridge:", "Subsystem:", "Capabilities: ", "Kernel driver in use:", "IOVSta:",
    "Initial VFs:", "VF offset:", "Supported Page Size:", "VF Migration:", "ARICap:", "Vector table:",
    "PBA:",
)  # fmt: skip
# "Capabilities: [a0] Express (v2) Endpoint, IntMsgNum 0" was "MSI 00"
REWORDED = (", IntMsgNum 0", ", MSI 00")


def split(text: str) -> tuple[str, dict[str, list[str]]]:
    """lspci's version and the lines of each function's block by its address."""
    version, _, rest = text.partition("\n")
    blocks = (block.splitlines() for block in rest.split("\n\n") if block.strip())
    return version, {block[0].split(" ")[0]: block for block in blocks}


def list_addresses(text: str) -> list[str]:
    """The functions it is about."""
    return list(split(text)[1])


def keep_blocks(text: str, addresses: Collection[str]) -> str:
    """The text without the functions that are not among `addresses`."""
    version, blocks = split(text)
    kept = ["\n".join(block) + "\n\n" for address, block in blocks.items() if address in addresses]
    return f"{version}\n" + "".join(kept)


def keep_stable(lines: list[str]) -> list[str]:
    """The lines of a block that every version of lspci prints alike."""
    kept = [lines[0], *(line for line in lines[1:] if line.strip().startswith(STABLE))]
    return [line.removesuffix(REWORDED[0]).removesuffix(REWORDED[1]) for line in kept]
