//! The HTTP side: management in Atom, the REST data plane, and switches for tests, all on one port, plain or TLS.
