"""Files and objects: local folders, stores, locks, what is committed whole, and which failure is which."""
