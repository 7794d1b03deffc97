"""The D-Bus layer against a private bus, with busctl and dbus-next itself as the clients."""
