"""Error data for the owner of a VF, with no relay through an administrator.

Rule: it is made of what was recorded when the VF froze, cut to what concerns that VF (cut.py), and of what
is in memory; while the VF is out of service nothing reaches the device for it.
"""
