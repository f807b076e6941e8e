"""Seeds of adversity: real gateways, a primary and its standby, faults drawn by lot, and an oracle that keeps count."""
