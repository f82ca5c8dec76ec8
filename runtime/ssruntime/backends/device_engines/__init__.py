"""Engines that are bound to fixed addresses of a device's memory, whatever runs them."""
