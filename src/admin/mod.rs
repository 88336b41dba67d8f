//! HTTP over TCP and the control socket.
