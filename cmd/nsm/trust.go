// SPDX-License-Identifier: Apache-2.0

package main

import (
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/openvwire/nsm/sdk/hop"
	"github.com/openvwire/nsm/sdk/identity"
)

// Whom a daemon trusts with more than what is their own: docs/security.md, "Who may
// do what". Identities that this project gives out say by their form whether they
// are of a part or of root of a node. Those of somebody else, of SPIRE for example,
// do not, and nobody has more rights unless a flag names him.

// listed reports whether an identity is one of those named; ID/* means everything
// below ID.
func listed(named []string, id string) bool { return hop.Strict{Observers: named}.IsObserver(id) }

// isOwn reports whether id is p's own, or that of another part of its node or of
// the node's root.
func isOwn(p *part, id string) bool {
	if id == p.id() {
		return true
	}
	own, other, ok := compatriots(p, id)
	if !ok {
		return false
	}
	here, _, _ := identity.NodeOf(own)
	node, trusted, _ := identity.NodeOf(other)
	return trusted && node == here
}

// isPart reports whether id is p's own, or that of a part or root of any node of
// p's domain.
func isPart(p *part, id string) bool {
	if id == p.id() {
		return true
	}
	_, other, ok := compatriots(p, id)
	_, trusted, _ := identity.NodeOf(other)
	return ok && trusted
}

// compatriots returns p's identity and another one if they are of one domain.
func compatriots(p *part, id string) (own, other spiffeid.ID, ok bool) {
	own, err := spiffeid.FromString(p.id())
	if err != nil {
		return own, other, false
	}
	other, err = spiffeid.FromString(id)
	return own, other, err == nil && other.MemberOf(own.TrustDomain())
}

// rootOf is the identity of the root user of p's node, who may do and see
// everything on the node anyway; "" where identities are somebody else's.
func rootOf(p *part) string {
	own, err := spiffeid.FromString(p.id())
	if err != nil {
		return ""
	}
	node, _, ok := identity.NodeOf(own)
	if !ok {
		return ""
	}
	root, err := identity.UserID(own.TrustDomain(), node, 0)
	if err != nil {
		return ""
	}
	return root.String()
}

// observers are those who see all wires of a node that one process serves: its
// manager, its root as far as that has an identity of its own, and those named.
func observers(manager *part, named []string) []string {
	all := []string{manager.id()}
	if root := rootOf(manager); root != "" {
		all = append(all, root)
	}
	return append(all, named...)
}

// nodeUsers are the identities that may have wires in the node's own namespace:
// the node's parts and root, who can do so anyway, and those named.
func nodeUsers(p *part, named []string) func(id string) bool {
	return func(id string) bool { return isOwn(p, id) || listed(named, id) }
}

// forwarders are those that may register as forwarders of p's node.
func forwarders(p *part, named []string) func(id string) bool {
	return func(id string) bool { return isOwn(p, id) || listed(named, id) }
}

// relays are those that may send Requests of others, and tell of their nodes in the
// tunnel.
func relays(p *part, named []string) func(id string) bool {
	return func(id string) bool { return isPart(p, id) || listed(named, id) }
}

// caretakers are those that may drain endpoints of others, and record profiles of
// daemons.
func caretakers(p *part, named []string) func(id string) bool {
	return func(id string) bool { return isPart(p, id) || listed(named, id) }
}

// spokesmen are those who may register for others: those named, who may for
// everybody, whoever is the registry itself, and the parts and root of each node,
// who may for everybody that is not on another node.
func spokesmen(p *part, named []string) func(caller, owner string) bool {
	return func(caller, owner string) bool {
		if listed(named, caller) || caller == p.id() {
			return true
		}
		_, id, ok := compatriots(p, caller)
		node, trusted, _ := identity.NodeOf(id)
		if !ok || !trusted {
			return false
		}
		of, err := spiffeid.FromString(owner)
		if err != nil {
			return false
		}
		elsewhere, _, placed := identity.NodeOf(of)
		return !placed || elsewhere == node
	}
}

// operators are those who may change the services of others: those named, and root
// of the registry's node. For somebody whose identity has no node, any manager may
// speak.
func operators(p *part, named []string) func(id string) bool {
	return func(id string) bool {
		return id != "" && (id == rootOf(p) || listed(named, id))
	}
}
