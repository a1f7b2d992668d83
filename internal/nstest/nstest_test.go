// SPDX-License-Identifier: Apache-2.0

package nstest

import (
	"net"
	"os"
	"strings"
	"testing"
)

func TestMain(m *testing.M) { Main(m) }

func TestFreshNamespace(t *testing.T) {
	links, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	if len(links) != 1 || links[0].Name != "lo" || links[0].Flags&net.FlagUp == 0 {
		t.Errorf("links are %v, want lo alone, up", links)
	}
	c, err := Count()
	if err != nil {
		t.Fatal(err)
	}
	if c.Links != 1 || c.Addrs == 0 || c.Rules == 0 || c.Routes == 0 || c.Neighbors != 0 {
		t.Errorf("census of a fresh namespace: %+v", c)
	}
}

// A leak is reported by what was leaked.
func TestLeaksAreFound(t *testing.T) {
	before, err := takeInventory()
	if err != nil {
		t.Fatal(err)
	}
	if err := before.compare(before); err != nil {
		t.Errorf("nothing leaked, but: %v", err)
	}
	f, err := os.Open("/etc/passwd")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := os.MkdirAll("/run/netns/blue", 0o755); err != nil {
		t.Fatal(err)
	}
	defer os.Remove("/run/netns/blue")
	after, err := takeInventory()
	if err != nil {
		t.Fatal(err)
	}
	after.census.Links++
	err = before.compare(after)
	for _, want := range []string{"/etc/passwd", "/run/netns/blue", "Links:2"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not reported: %v", want, err)
		}
	}
}
