// SPDX-License-Identifier: Apache-2.0

package main

import (
	"crypto/x509"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// fixed is an identity.Source with one SVID that nobody checks.
type fixed string

func (f fixed) GetX509SVID() (*x509svid.SVID, error) {
	id, err := spiffeid.FromString(string(f))
	if err != nil {
		return nil, err
	}
	return &x509svid.SVID{ID: id, Certificates: []*x509.Certificate{{NotAfter: time.Now().Add(time.Hour)}}}, nil
}

func (fixed) GetX509BundleForTrustDomain(spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	return nil, errors.New("no bundle")
}
func (fixed) Updated() <-chan struct{} { return nil }
func (fixed) Close() error             { return nil }

func partOf(t *testing.T, id string) *part {
	t.Helper()
	p := newPart(fixed(id), time.Minute, slog.New(slog.DiscardHandler))
	t.Cleanup(p.close)
	return p
}

const (
	here  = "spiffe://nsm.local/node/a/"
	there = "spiffe://nsm.local/node/b/"
)

// Each row says what somebody may do at the parts of node a that nobody has named,
// as the flags would.
func TestTrustedIdentities(t *testing.T) {
	manager := partOf(t, here+"manager")
	decisions := []struct {
		flag string
		by   func(named []string) func(id string) bool
	}{
		{"--forwarders", func(n []string) func(string) bool { return forwarders(manager, n) }},
		{"--managers", func(n []string) func(string) bool { return relays(manager, n) }},
		{"--operators", func(n []string) func(string) bool { return caretakers(manager, n) }},
		{"--node-users", func(n []string) func(string) bool { return nodeUsers(partOf(t, here+"forwarder"), n) }},
		{"--observers", func(n []string) func(string) bool {
			return func(id string) bool { return listed(observers(manager, n), id) }
		}},
	}
	for _, tt := range []struct {
		who, id string
		may     string // the flags that are not needed
	}{
		{"the manager", here + "manager", "--forwarders --managers --operators --node-users --observers"},
		{"another part", here + "forwarder", "--forwarders --managers --operators --node-users"},
		{"the node's agent", here + "agent", "--forwarders --managers --operators --node-users"},
		{"root", here + "uid/0", "--forwarders --managers --operators --node-users --observers"},
		{"a user", here + "uid/1001", ""},
		{"a user whose number begins with 0", here + "uid/00", ""},
		{"somebody below a part", here + "manager/x", ""},
		{"somebody below root", here + "uid/0/x", ""},
		{"the node itself", "spiffe://nsm.local/node/a", ""},
		{"a part of another node", there + "manager", "--managers --operators"},
		{"root of another node", there + "uid/0", "--managers --operators"},
		{"a user of another node", there + "uid/1001", ""},
		{"the authority", "spiffe://nsm.local/authority", ""},
		{"a process that an entry names", "spiffe://nsm.local/payments/db", ""},
		{"a process that is named like a part", "spiffe://nsm.local/a/manager", ""},
		{"a part in another domain", "spiffe://other.example/node/a/manager", ""},
		{"root in another domain", "spiffe://other.example/node/a/uid/0", ""},
		{"a domain whose name begins alike", "spiffe://nsm.local.evil/node/a/manager", ""},
		{"nobody", "", ""},
		{"no SPIFFE ID", "node/a/manager", ""},
		{"no identity", "(no identity)", ""},
	} {
		for _, d := range decisions {
			want := slices.Contains(strings.Fields(tt.may), d.flag)
			if got := d.by(nil)(tt.id); got != want {
				t.Errorf("%s without %s: %v, want %v", tt.who, d.flag, got, want)
			}
			if got := d.by([]string{""})(tt.id); got != want {
				t.Errorf("%s with an empty %s: %v, want %v", tt.who, d.flag, got, want)
			}
			if tt.id == "" {
				continue
			}
			if !d.by([]string{"spiffe://x/y", tt.id})(tt.id) {
				t.Errorf("%s is named by %s in vain", tt.who, d.flag)
			}
			if above := tt.id[:strings.LastIndexByte(tt.id, '/')+1] + "*"; above != "*" && !d.by([]string{above})(tt.id) {
				t.Errorf("%s is named by %s %s in vain", tt.who, d.flag, above)
			}
		}
	}
}

// Where identities are somebody else's no form of a name makes anybody a part.
func TestTrustWithForeignIdentities(t *testing.T) {
	const own = "spiffe://example.org/ns/nsm/sa/manager"
	p := partOf(t, own)
	if got := observers(p, []string{"spiffe://example.org/ops"}); !slices.Equal(got, []string{own, "spiffe://example.org/ops"}) {
		t.Errorf("observers() = %q", got)
	}
	for _, id := range []string{"", "spiffe://example.org/ns/default/sa/web", "spiffe://example.org/ns/nsm/sa/manager2", "spiffe://example.org/ns/nsm/sa"} {
		if forwarders(p, nil)(id) || relays(p, nil)(id) || nodeUsers(p, nil)(id) || spokesmen(p, nil)(id, id) || listed(observers(p, nil), id) {
			t.Errorf("%q is trusted", id)
		}
	}
	if !forwarders(p, nil)(own) || !relays(p, nil)(own) || !nodeUsers(p, nil)(own) || !spokesmen(p, nil)(own, "spiffe://example.org/ns/default/sa/web") {
		t.Error("it does not trust itself")
	}
}

func TestRootOf(t *testing.T) {
	for id, want := range map[string]string{
		here + "manager":                         here + "uid/0",
		here + "uid/0":                           here + "uid/0",
		here + "uid/1001":                        here + "uid/0",
		there + "registry":                       there + "uid/0",
		"spiffe://nsm.local/authority":           "",
		"spiffe://nsm.local/payments/db":         "",
		"spiffe://nsm.local/node/a":              "",
		"spiffe://example.org/ns/nsm/sa/manager": "",
	} {
		if got := rootOf(partOf(t, id)); got != want {
			t.Errorf("rootOf(%s) = %q, want %q", id, got, want)
		}
	}
	if got := rootOf(partOf(t, "gone")); got != "" {
		t.Errorf("rootOf(nobody) = %q", got)
	}
}

// Each row registers something for an owner at the registry of node a.
func TestSpokesmen(t *testing.T) {
	const entry, foreign = "spiffe://nsm.local/payments/db", "spiffe://other.example/node/b/uid/0"
	for _, tt := range []struct {
		who, caller, owner string
		want               bool
	}{
		{"the registry itself", here + "registry", there + "uid/0", true},
		{"its node's manager for a user there", here + "manager", here + "uid/1001", true},
		{"its node's manager for an entry", here + "manager", entry, true},
		{"its node's manager for another node's user", here + "manager", there + "uid/1001", false},
		{"another node's manager for its user", there + "manager", there + "uid/1001", true},
		{"another node's manager for its root", there + "manager", there + "uid/0", true},
		{"another node's manager for itself", there + "manager", there + "manager", true},
		{"another node's manager for an entry", there + "manager", entry, true},
		{"another node's manager for root here", there + "manager", here + "uid/0", false},
		{"another node's root for its user", there + "uid/0", there + "uid/1001", true},
		{"a user for himself", there + "uid/1001", there + "uid/1001", false}, // he needs nobody's leave for that
		{"a user for root", there + "uid/1001", there + "uid/0", false},
		{"an entry for a user", entry, here + "uid/1001", false},
		{"another domain's manager", "spiffe://other.example/node/b/manager", foreign, false},
		{"a manager for another domain", there + "manager", "spiffe://other.example/x", true},
		{"a manager for nobody", there + "manager", "", false},
		{"a manager for what is no ID", there + "manager", "root", false},
		{"nobody", "", there + "uid/0", false},
	} {
		registry := partOf(t, here+"registry")
		if got := spokesmen(registry, nil)(tt.caller, tt.owner); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.who, got, tt.want)
		}
		if tt.caller != "" && !spokesmen(registry, []string{tt.caller})(tt.caller, tt.owner) {
			t.Errorf("%s is named by --managers in vain", tt.who)
		}
	}
}
