"""D-Bus: the contract, the objects, the verbs. Imports point down only: bus knows core, never the reverse.

Only transport.py may import a D-Bus library, so that a successor of dbus-next is a change of one file.
"""
