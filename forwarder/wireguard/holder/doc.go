// SPDX-License-Identifier: Apache-2.0

// Package holder keeps userspace WireGuard devices in a process of their own,
// so that no restart of the forwarder touches a packet.
//
// The process, called the holder, is the forwarder's own program started again
// as `nsm wireguard-holder --socket PATH`, in a session of its own:
//
//	workload's namespace     holder (underlay namespace)          forwarder
//	┌─────────┐   packets   ┌──────────────────────────┐  fd+JSON ┌────────┐
//	│ nsm-1 ──┼── TUN fd ───┤ wireguard-go ── UDP port │◀─ PATH ──┤ Client │
//	└─────────┘             │   UAPI socket            │◀─ keys ──┤ uapi   │
//	                        └──────────────────────────┘          └────────┘
//
// The forwarder asks it for devices with a [Client] (create, delete, list) and
// passes the workload's namespace as an open descriptor. Keys, ports and peers
// never travel over this socket: each device serves WireGuard's standard
// configuration socket, /var/run/wireguard/NAME.sock, so that wgctrl and `wg`
// treat it like a device of the kernel. NAME is [DeviceName], unique on the
// machine; the interface in the workload's namespace has the name that the
// workload asked for.
//
// Life of a holder:
//
//   - exactly one per socket path: a lock (flock) on PATH.lock decides; who
//     loses the race exits and the client talks to the winner;
//   - it outlives the forwarder: own session, SIGHUP and SIGPIPE ignored; the
//     next forwarder adopts it by connecting to the same path, whatever version
//     either has (docs/adr/0007);
//   - it exits by itself when it has had neither a device nor an attached
//     forwarder for [DefaultIdle];
//   - SIGTERM deletes all devices and exits; a forwarder that is attached
//     replaces it, as after any other death, and makes its devices anew;
//   - one that stands still (SIGSTOP) is left alone: its forwarder finds out within
//     3 s, says so once, and fails at once until it goes on or is killed.
//
// Under systemd the forwarder's unit therefore needs KillMode=process.
//
// Only processes of the same user are served (SO_PEERCRED), and the client
// refuses a holder of another user in the same way. That is also who gets a profile of
// the holder ([Client.Profile]): root asks it without the forwarder, which need not run,
// and who is named to the forwarder may not.
//
// A TUN device is created in place, which takes 0.2 ms, where creating it here
// and moving it takes 15 ms. The price: the kernel ties the descriptor to the
// namespace it was created in, so a device keeps its namespace alive until it
// is deleted. Whoever closes a wire must delete its device; when somebody
// else removes the interface, the device notices and frees itself.
package holder
