// SPDX-License-Identifier: Apache-2.0

// Package mux lets one userspace WireGuard device carry many wires.
//
// A [Device] is what wireguard-go takes for its TUN device. Behind it are the TUN
// and TAP interfaces of all wires of a node, each in the namespace of its workload.
// WireGuard has one peer for each remote node: what a workload sends goes to the
// node where the other end of its wire is, and there into that end and no other.
//
//	workloads   nsm-1   nsm-2   nsm-3 …       TUN or TAP, one descriptor each
//	               ╲      │      ╱
//	            Device.Read ▲ Device.Write    the header below is added, taken off
//	                      │ ╲
//	                 wireguard-go             one peer per remote node, AllowedIPs = its id
//	                      │
//	                     UDP                  one port
//
// A [Single] is the same for a WireGuard device with one wire, which anybody may be the
// peer of: packets travel without a header, and what is to be joined is verified.
//
// # The header
//
// wireguard-go looks into what it carries: it finds the peer by the destination of
// an IP packet, accepts from a peer only the sources that belong to it, and cuts the
// padding off by the packet's total length. So each packet or frame of a wire travels
// behind 20 bytes that look like an IPv4 header and that no kernel ever sees. What
// WireGuard does not look at is ours. Numbers are big-endian.
//
//	offset  bytes  IPv4 has here       here
//	     0      1  version, length     0x45, as in IPv4
//	     1      1  TOS                 high 4 bits: version of this header, 1; low 4 bits: flags
//	     2      2  total length        as in IPv4: header and packet, without padding
//	     4      4  id, fragment        number of the wire, chosen by the receiver
//	     8      4  TTL, protocol, sum  0; ignored by the receiver
//	    12      4  source              id of the sending node
//	    16      4  destination         id of the receiving node
//
// A packet with another version is dropped. Flags are hints, which a receiver may
// ignore; those without a meaning are sent as 0:
//
//	0x01  the sender has computed the packet's TCP or UDP checksum, or has split it
//	      from a larger one: it need not be verified, since WireGuard lets nobody
//	      change it on the way
//
// Ids of nodes are random, not 0, and told to the peer together with the keys; the
// id of a peer as /32 is all of its AllowedIPs. By them WireGuard vouches for the
// source, and a Device gives a packet to a wire only if it comes from the node that
// the wire has as its peer: no node can send into the wires of another one.
//
// The header costs a wire 20 bytes of MTU.
//
// # Segments
//
// A kernel hands TCP and UDP over in units of up to 64 KiB, which Read splits into
// packets. Write joins packets that follow each other with the same headers again, if
// the flag says that their checksums are right: one system call, and one passage
// through the kernel, for many packets. Each packet is whole by itself, so it does not
// matter which of them arrive.
package mux
