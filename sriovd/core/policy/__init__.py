"""Declarative policy: from the text of files to what a PF shall look like. Nothing here touches a device.

The way of a text: files (finds and reads it) -> document (TOML, with a line for every key) -> reading
(checks every value by schema) -> wish_rules (checks that the values go together) -> model (what a policy
says) -> match (which policies a PF has, and their sum). policy_set does all of it for a host, and knows
the last good. Only files touches the file system.
"""

DIRECTORIES = ("/etc/sriovd", "/run/sriovd", "/usr/lib/sriovd")  # an earlier one goes before a later one
