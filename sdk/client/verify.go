// SPDX-License-Identifier: Apache-2.0

package client

import (
	"crypto/x509"
	"time"

	"github.com/openvwire/nsm/sdk/path"
	"github.com/openvwire/nsm/sdk/token"
)

// Verifier checks the path of a connection that a manager has answered with.
// manager is the certificate of whoever answered.
type Verifier func(p path.Path, manager *x509.Certificate, now time.Time) error

// VerifyPath is what an originator checks by default (protocol.md §2.6): all
// tokens of the path decode, are unexpired and chained, and the next hop's is
// that of the manager that answered.
//
// A manager whose SVID has rotated since the handshake signs with a key that
// the connection has not shown. TLS has proved who it is all the same, so its
// token is good if it names that identity.
func VerifyPath(p path.Path, manager *x509.Certificate, now time.Time) error {
	if err := token.CheckChain(p.Tokens(len(p.Segments)-1), now); err != nil {
		return err
	}
	next, _ := p.Next()
	t, err := token.Parse(next.Token)
	if err != nil {
		return err
	}
	if manager != nil && len(manager.URIs) == 1 && manager.URIs[0].String() == t.Subject {
		return nil
	}
	return t.VerifiedBy(manager)
}
