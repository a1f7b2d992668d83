// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/openvwire/nsm/internal/lab"
)

// Some of what wires must survive is done on purpose: the CA of the domain is replaced,
// and endpoints and nodes are drained before they end.

// Where the CA is rotated lives are short, so that all identities and tokens change
// while it is watched: an SVID after half a minute at most.
const (
	svidLife  = time.Minute
	tokenLife = 20 * time.Second
	// rotateAfter is how long the new CA is only trusted.
	rotateAfter = 2 * time.Second
)

// rotate replaces the CA. What it returns waits until every server shows an identity of
// the new one.
func (m *mesh) rotate(ctx context.Context) (undo, error) {
	before, err := m.issuers()
	if err != nil {
		return nil, err
	}
	if _, err := m.lab.Node("a").Nsm(ctx, "rotate", "ca", "--after", rotateAfter.String()); err != nil {
		return nil, err
	}
	return func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, svidLife)
		defer cancel()
		for {
			now, err := m.issuers()
			if err != nil {
				return err
			}
			left := slices.DeleteFunc(now, func(s string) bool { return !slices.Contains(before, s) })
			if len(left) == 0 {
				return nil
			}
			if err := wait(ctx, 200*time.Millisecond); err != nil {
				return fmt.Errorf("%v still show identities of the old CA", left)
			}
		}
	}, nil
}

// issuers returns the servers of the domain, each with the key that has signed what it
// shows.
func (m *mesh) issuers() (all []string, err error) {
	for _, n := range m.lab.Nodes() {
		ports := map[string]uint16{"manager": 5001}
		if n.Name == "a" {
			ports["registry"] = 5002
		}
		for part, port := range ports {
			key, err := issuer(n.NetNS, netip.AddrPortFrom(n.Addr, port))
			if err != nil {
				return nil, fmt.Errorf("%s of %s: %w", part, n.Name, err)
			}
			all = append(all, fmt.Sprintf("%s of %s: %x", part, n.Name, key))
		}
	}
	return all, nil
}

// issuer returns the id of the key that has signed the certificate that somebody shows.
func issuer(from *lab.NetNS, at netip.AddrPort) (key []byte, err error) {
	err = from.Do(func() error {
		// Who that is does not matter here, and it finds out too late that nobody asks.
		dialer := tls.Dialer{NetDialer: &net.Dialer{Timeout: patience}, Config: &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}}}
		c, err := dialer.Dial("tcp", at.String())
		if err != nil {
			return err
		}
		defer c.Close()
		key = c.(*tls.Conn).ConnectionState().PeerCertificates[0].AuthorityKeyId
		return nil
	})
	return key, err
}

// drainEndpoints drains all endpoints that have wires, then ends them.
func (m *mesh) drainEndpoints(ctx context.Context) error {
	return m.each(func(w *wire) error {
		if _, err := m.lab.Node("a").Nsm(ctx, "drain", "endpoint", w.first.name); err != nil {
			return err
		}
		w.first.kill()
		return nil
	})
}

// drainNode drains a node, then takes it away.
func (m *mesh) drainNode(ctx context.Context, n *lab.Node) error {
	if _, err := m.lab.Node("a").Nsm(ctx, "drain", "node", n.Name); err != nil {
		return err
	}
	return m.destroy(n)
}
