// SPDX-License-Identifier: Apache-2.0

package hop

import (
	"strings"
	"time"

	"github.com/openvwire/nsm/sdk/nserr"
	"github.com/openvwire/nsm/sdk/path"
	"github.com/openvwire/nsm/sdk/rpc"
	"github.com/openvwire/nsm/sdk/token"
)

// Policy says who may do what at a hop.
type Policy interface {
	// Admit checks a Request or Close whose path, up to and including the own
	// segment at p.Index, has fresh tokens.
	Admit(caller rpc.Caller, p path.Path, now time.Time) error

	// IsObserver reports whether the identity may see every connection, not only
	// those whose path it is part of. "" stands for whoever is not known.
	IsObserver(id string) bool
}

// Strict is the default policy: the checks of protocol.md §2.6, and that a
// connection is seen by those whose path it is, and by observers.
type Strict struct {
	// Observers may see every connection. An entry that ends in "/*" stands for
	// all SPIFFE IDs below it.
	Observers []string
}

// Admit fails with a PermissionDenied reason unless the tokens of the path up
// to this hop decode, are unexpired and chained, and the previous one was
// signed by whom TLS says the caller is.
func (Strict) Admit(caller rpc.Caller, p path.Path, now time.Time) error {
	if caller.Token == "" {
		return nserr.NoToken.Errorf("the call of %q carries no token", caller.ID)
	}
	if err := token.CheckChain(p.Tokens(p.Index), now); err != nil {
		return err
	}
	prev, _ := p.Prev()
	t, err := token.Parse(prev.Token)
	if err != nil {
		return err
	}
	return t.VerifiedBy(caller.Cert)
}

// IsObserver reports whether id is named as an observer. Whoever is not known is
// none, whatever is named.
func (s Strict) IsObserver(id string) bool {
	if id == "" {
		return false
	}
	for _, o := range s.Observers {
		if o == id {
			return true
		}
		if below, ok := strings.CutSuffix(o, "/*"); ok && strings.HasPrefix(id, below+"/") {
			return true
		}
	}
	return false
}
