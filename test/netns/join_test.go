// SPDX-License-Identifier: Apache-2.0

package netns_test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/openvwire/nsm/internal/lab"
	"github.com/openvwire/nsm/sdk/identity/jointoken"
)

// token makes a join token on a node and changes it.
func token(t *testing.T, on *lab.Node, change func(*jointoken.Token)) string {
	t.Helper()
	text, err := on.Nsm(t.Context(), "token", "create")
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := jointoken.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	change(&parsed)
	return parsed.Encode()
}

// A machine joins though nobody is at the first address of its token and the
// registry is not where it usually is; started again without the token it is what
// it was, and not an authority of its own.
func TestUpAfterJoining(t *testing.T) {
	l := newLab(t, lab.Config{})
	a, b := l.Node("a"), l.Node("b")
	if _, err := a.Start(t.Context(), "up", "--registry-listen-on", "tcp://:5777"); err != nil {
		t.Fatal(err)
	}
	nobody := netip.AddrPortFrom(a.Addr.Next().Next(), 5007).String()
	join := token(t, a, func(token *jointoken.Token) { token.Addresses = append([]string{nobody}, token.Addresses...) })
	unchanged(t, l)
	server, client := workload(t, a, "db"), workload(t, b, "web")
	serve(t, server, "db", "--cidr", "10.60.0.0/24", "--payload", "ETHERNET")
	for _, args := range [][]string{{"--join", join}, nil} {
		up, err := b.Start(t.Context(), "up", args...)
		if err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(up.Output(), "\n")
		for _, want := range []string{" as agent of node ", "registry   listens on (elsewhere) tcp://" + a.Addr.String() + ":5777 "} {
			if !slices.ContainsFunc(lines, func(line string) bool { return strings.Contains(line, want) }) {
				t.Errorf("nsm up %.6s does not say %q:\n%s", args, want, up.Output())
			}
		}
		w := connect(t, client, "kernel://db/nsm-1", "--wait", "15s")
		if err := transfer(client, server, w.far[0]); err != nil {
			t.Error(err)
		}
		if err := w.client.Stop(); err != nil {
			t.Error(err)
		}
		if err := up.Stop(); err != nil {
			t.Error(err)
		}
	}
}
