"""The bundled userspace adapter: configuration space of a PF and its VFs, bit by bit.

Rule: pure synchronous objects. Imports nothing of sriovd but `sriovd.pci`; knows no sysfs, no kernel, no
event loop.
"""

from sriovd.backend.model.adapter import Adapter, PhysicalFunctionModel, VirtualFunctionModel
from sriovd.backend.model.aer import AerRecord, AerSeverity
from sriovd.backend.model.configspace import ConfigSpace, Reset
from sriovd.backend.model.function import FunctionModel
from sriovd.backend.model.profiles import PROFILES, AdapterProfile

__all__ = [
    "PROFILES",
    "Adapter",
    "AdapterProfile",
    "AerRecord",
    "AerSeverity",
    "ConfigSpace",
    "FunctionModel",
    "PhysicalFunctionModel",
    "Reset",
    "VirtualFunctionModel",
]
