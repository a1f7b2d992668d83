// SPDX-License-Identifier: Apache-2.0

// Package identity gives a program its SPIFFE identity.
//
// An identity is an X.509-SVID: a short-lived certificate whose only name is a
// SPIFFE ID such as spiffe://nsm.local/node/a/uid/1001, and its key. With it
// comes a bundle: the CA certificates by which to check other SVIDs. Both
// change while a program runs, so programs hold a [Source], never a
// certificate:
//
//	source, err := identity.Open(ctx, identity.Config{})
//	if err != nil {
//		return err // says what to start
//	}
//	defer source.Close()
//	client, server := rpc.MutualTLS(source, source)
//
// The types are those of go-spiffe, and whoever serves the SPIFFE Workload API
// may be behind a Source: SPIRE, the authority of the domain (package
// authority), or the agent of a node that has joined it (package agent).
//
// The duties of the holder: ask the source again for each handshake and each
// token, and close it.
package identity

import (
	"crypto/sha256"
	"encoding/hex"
	"io"
	"strconv"
	"strings"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

const (
	// DefaultSocket is where the authority or the agent of a node serves the
	// Workload API, and where programs look unless SPIFFE_ENDPOINT_SOCKET is set.
	DefaultSocket = "unix:///var/lib/networkservicemesh/identity.sock"

	// DefaultTrustDomain is the name of a domain that nobody has named.
	DefaultTrustDomain = "nsm.local"
)

// Source is an identity that stays fresh by itself. *workloadapi.X509Source
// has the same methods.
type Source interface {
	// GetX509SVID returns the current SVID. It fails with the reason
	// nserr.NoIdentity when that has expired or the source is closed.
	x509svid.Source

	// GetX509BundleForTrustDomain returns what SVIDs of a domain must chain to.
	x509bundle.Source

	// Updated is sent on, without blocking, when the SVID or a bundle has
	// changed. It is for one reader; it is never closed.
	Updated() <-chan struct{}

	// Close ends the renewal. It is idempotent.
	io.Closer
}

// The SPIFFE IDs that this project gives out have these paths. Everything
// below /node/ and /authority is reserved: entries cannot name it.

// AuthorityID is the ID under which the authority of a domain serves nodes.
func AuthorityID(td spiffeid.TrustDomain) spiffeid.ID {
	return spiffeid.RequireFromSegments(td, "authority")
}

// NodeID is the ID of a part of a node, such as its "manager". The part
// "agent" is the node itself: whoever has that identity may get SVIDs for
// everything below /node/<node>/.
func NodeID(td spiffeid.TrustDomain, node string, part ...string) (spiffeid.ID, error) {
	return spiffeid.FromSegments(td, append([]string{"node", node}, part...)...)
}

// CAServerName is the TLS server name by which a node asks the authority for a
// certificate of the CA that it knows, ca being the SHA-256 of that. So it
// recognises the authority while one CA takes over from another, be it that it was
// away or that its token is of before.
func CAServerName(ca [sha256.Size]byte) string { return hex.EncodeToString(ca[:16]) + ".ca" }

// NodeOf returns the node that an ID with such a path is of. trusted reports
// whether whoever has it has that node in hand anyway: its agent, another part of
// it, or its root. ok is false for an ID that names no node.
func NodeOf(id spiffeid.ID) (node string, trusted, ok bool) {
	s := strings.Split(id.Path(), "/") // "", "node", name, part…
	if len(s) < 4 || s[1] != "node" {
		return "", false, false
	}
	return s[2], len(s) == 4 || len(s) == 5 && s[3] == "uid" && s[4] == "0", true
}

// UserID is the ID of a process for which there is no better name: the user
// that it runs as, on its node.
func UserID(td spiffeid.TrustDomain, node string, uid uint32) (spiffeid.ID, error) {
	return NodeID(td, node, "uid", strconv.FormatUint(uint64(uid), 10))
}
