"""Inspecting VFs: what the owner of one may have looked up about it with sriovd's rights.

Rule: what is not in the table (table.py) is not looked up; every row of it speaks of one VF, and no answer
and no refusal names another, its user, how many there are, or a process. What reaches the device is not done
while the VF is out of service.
"""
