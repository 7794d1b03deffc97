"""The lab: a stock Debian kernel under QEMU with emulated SR-IOV devices, driven from pytest; `python -m
tests.lab --help` for a look by hand.
"""
