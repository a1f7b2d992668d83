// SPDX-License-Identifier: Apache-2.0

// Package rpc is how parts of the mesh reach each other: addresses, mutual TLS
// with SPIFFE identities, tokens, errors and open files.
//
// A server and a client over a Unix socket:
//
//	client, server := rpc.MutualTLS(svids, bundles)
//
//	l, err := rpc.Listen(ctx, "unix:///run/nsm.sock")
//	s := rpc.NewServer(rpc.ServerOptions{Credentials: server})
//	rpc.RegisterNetworkService(s, impl)
//	go s.Serve(l)
//
//	cc, err := rpc.Dial("unix:///run/nsm.sock", rpc.DialOptions{Credentials: client, Tokens: tokens})
//	conn, err := networkservice.NewNetworkServiceClient(cc).Request(ctx, request)
//
// Inside a handler [CallerFrom] says who calls. Errors of package nserr cross
// the call with their reason: errors.Is works on the far side too. Open files
// go along with a request over a Unix socket ([WithFiles], [ReceiveFile]) and
// along with its reply ([SendFiles], [ReceiveReplyFile]), as protocol.md §2.14
// has it.
//
// Parts in one process need no socket: a [Local] takes the same registrations
// as a grpc.Server and gives out the same client connections; nothing in a
// handler or a client can tell the difference.
package rpc

import "time"

// DefaultManager is where a node's manager listens (protocol.md §1.3).
const DefaultManager = "unix:///var/lib/networkservicemesh/nsm.io.sock"

// Limits and timings of every connection, in one place.
const (
	// maxRequest and maxMessage bound in bytes what servers and clients receive as one
	// message. What is larger is refused with ResourceExhausted, nserr.TooLarge to our
	// clients. A Request, registration or query has a few KiB, one with thousands of
	// excluded prefixes less than 200; one of tiny elements takes many times its bytes
	// before anybody can look at it. Answers can be lists: for them it is gRPC's own
	// default.
	maxRequest = 512 << 10
	maxMessage = 4 << 20

	// streamWindowBytes and connWindowBytes are how much a peer may send before the other
	// side has taken it: far more than any call of a mesh has, and for a long list 25
	// Mbit/s at 80 ms there and back. Whoever sends messages by half can have a stream's
	// window kept for each of its streams. gRPC would find the size out by itself, with a
	// ping and its answer for nearly every message that comes alone.
	streamWindowBytes = 256 << 10
	connWindowBytes   = 1 << 20

	// An idle or waiting connection is probed every keepaliveTime and given up
	// after keepaliveTimeout without an answer: by clients with TCP's keepalive, by
	// servers with pings of HTTP/2. The reference has neither (§2.2). The timeout is
	// also TCP_USER_TIMEOUT, so data sent into a black hole fails within it too.
	keepaliveTime    = 10 * time.Second
	keepaliveTimeout = 3 * time.Second
	// minClientPing is how often a client may ping before the server says
	// ENHANCE_YOUR_CALM: half of keepaliveTime, so that jitter never trips it.
	minClientPing = keepaliveTime / 2

	// connectTimeout limits one attempt to connect, handshake included. After a
	// failed one the next comes after redialMin, growing to redialMax: a part that
	// restarts is found again well within a second.
	connectTimeout = 3 * time.Second
	redialMin      = 50 * time.Millisecond
	redialMax      = 2 * time.Second
	// redialMaxUnix is redialMax for Unix sockets: to be refused by one costs next to
	// nothing, and everybody on a node waits for its manager.
	redialMaxUnix = 250 * time.Millisecond

	// probeTimeout limits the connect that tells a live Unix socket from a stale one.
	probeTimeout = time.Second

	// lastWord is how long a caller whose time is over waits for a handler in the same
	// process, which hears of it at the same moment.
	lastWord = 20 * time.Millisecond

	// healthPoll is how often a health watch asks whether the part is ready.
	healthPoll = time.Second

	// fileWait is how long a descriptor may arrive later than the message that
	// names it. Ours arrive earlier; the reference sends some of them after.
	fileWait = 2 * time.Second
	// fileLife is how long a descriptor that nobody claims stays open. Connections
	// live for ever, and an open namespace outlives its dead workload.
	fileLife = 10 * time.Second
	// spillLife is for how long it is remembered, and maxSpills of how many descriptors of a
	// connection, that they were closed unclaimed.
	spillLife = time.Minute
	maxSpills = 64
	// maxFiles bounds the unclaimed descriptors of a connection, and those that
	// wait to be sent. Descriptors run ahead of the requests that name them, so it
	// is also how many Requests may come at once: all the clients of a node share
	// the connection from its manager to its forwarder.
	maxFiles = 1024
	// maxUserFiles and maxUserConns bound what one user may hold of a part over Unix
	// sockets, unclaimed descriptors and connections, whatever else is possible: far
	// below the limit of open files that a daemon has.
	maxUserFiles = 2 * maxFiles
	maxUserConns = 2048
	// filesPerRead is the ancillary room of one recvmsg in descriptors (§2.14).
	filesPerRead = 64

	// streamWindow is how many messages an in-process stream holds in each direction
	// before the sender waits.
	streamWindow = 16
)
