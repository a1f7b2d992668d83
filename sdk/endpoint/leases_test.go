// SPDX-License-Identifier: Apache-2.0

package endpoint

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/networkservicemesh/api/pkg/api/networkservice"
	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	"github.com/openvwire/nsm/internal/journal"
	"github.com/openvwire/nsm/sdk/ipam"
	"github.com/openvwire/nsm/sdk/nserr"
)

// life is one life of an endpoint: its pool and its chain of handlers.
type life struct {
	t       testing.TB
	path    string
	pool    *ipam.Pool
	leases  *Leases
	handler Handler
	log     bytes.Buffer
}

const tokenLife = 10 * time.Minute

func begin(t testing.TB, path, cidr string) *life {
	t.Helper()
	groups, err := ipam.ParseGroups(cidr)
	if err != nil {
		t.Fatal(err)
	}
	l := &life{t: t, path: path}
	if l.pool, err = ipam.New(groups); err != nil {
		t.Fatal(err)
	}
	l.leases, err = OpenLeases(path, l.pool, slog.New(slog.NewTextHandler(&l.log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	l.handler = Chain(l.leases.Remember, Addresses(l.pool, Strict))
	return l
}

// restart begins the next life, as after a SIGKILL: nothing is said to anybody.
func (l *life) restart(cidr string) *life {
	l.t.Helper()
	l.leases.Close() // the kernel does so
	return begin(l.t, l.path, cidr)
}

func connection(id string) *networkservice.Connection {
	return &networkservice.Connection{
		Id: id,
		Path: &networkservice.Path{Index: 1, PathSegments: []*networkservice.PathSegment{
			{Name: "forwarder", Id: "f-" + id, Expires: timestamppb.New(time.Now().Add(tokenLife))}, {Name: "db", Id: id},
		}},
		Context: &networkservice.ConnectionContext{IpContext: &networkservice.IPContext{}},
	}
}

// ask returns what a connection gets that brings no addresses along: "src dst".
func (l *life) ask(id string) string {
	l.t.Helper()
	r := &Request{Connection: connection(id)}
	if err := l.handler.Request(l.t.Context(), r); err != nil {
		l.t.Fatal(err)
	}
	ip := r.Connection.GetContext().GetIpContext()
	return strings.Join(slices.Concat(ip.SrcIpAddrs, ip.DstIpAddrs), " ")
}

func (l *life) close(id string, state networkservice.State) {
	c := connection(id)
	c.State = state
	l.handler.Close(l.t.Context(), c)
}

func leasePath(t testing.TB) string { return filepath.Join(t.TempDir(), "db", "leases") }

// After a restart everybody finds the addresses they had, whoever asks first.
func TestLeasesSurviveARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const cidr = "10.0.0.0/24,fd00::/64"
		l := begin(t, leasePath(t), cidr)
		a, b := l.ask("a"), l.ask("b")
		l.ask("closed")
		l.close("closed", networkservice.State_UP)
		time.Sleep(tokenLife - time.Second)
		l = l.restart(cidr)
		if c := l.ask("c"); c != "10.0.0.5/32 fd00::5/128 10.0.0.4/32 fd00::4/128" {
			t.Errorf("a new one has %s, want the first that is free", c)
		}
		if again := l.ask("b"); again != b {
			t.Errorf("b has %s, had %s", again, b)
		}
		time.Sleep(time.Second) // a has not been heard of for all its life
		if d := l.ask("d"); d != a {
			t.Errorf("d has %s, want what was a's: %s", d, a)
		}
		if again := l.ask("b"); again != b {
			t.Errorf("b has %s, had %s", again, b)
		}
		l.leases.Close()
	})
}

// What was given to a connection that the endpoint then refused waits for it again.
func TestLeaseOfARefusedRefresh(t *testing.T) {
	l := begin(t, leasePath(t), "10.0.0.0/24")
	a := l.ask("a")
	l = l.restart("10.0.0.0/24")
	refuse := Chain(l.leases.Remember, func(next Handler) Handler {
		return Funcs{OnRequest: func(ctx context.Context, r *Request) error {
			return errors.Join(next.Request(ctx, r), nserr.Busy.Errorf("not now"))
		}, OnClose: next.Close}
	}, Addresses(l.pool, Strict))
	c := connection("a")
	if err := refuse.Request(t.Context(), &Request{Connection: c}); !errors.Is(err, nserr.Busy) {
		t.Fatal(err)
	}
	c.State = networkservice.State_DOWN
	refuse.Close(t.Context(), c)
	if b := l.ask("b"); b == a {
		t.Error("b has the addresses of a, which is about to try again")
	}
	if again := l.ask("a"); again != a {
		t.Errorf("a has %s, had %s", again, a)
	}
	l.leases.Close()
}

// A pool that has changed keeps what is still of it.
func TestLeasesOfAnotherPool(t *testing.T) {
	l := begin(t, leasePath(t), "10.0.0.0/24,10.1.0.0/24")
	a, b := l.ask("a"), l.ask("b")
	l = l.restart("10.0.0.0/24,fd00::/64")
	if c := l.ask("c"); c != "10.0.0.5/32 fd00::1/128 10.0.0.4/32 fd00::/128" {
		t.Errorf("c has %s", c)
	}
	if again := l.ask("b"); again != "10.0.0.3/32 fd00::3/128 10.0.0.2/32 fd00::2/128" {
		t.Errorf("b had %s and has %s", b, again)
	}
	l = l.restart("10.2.0.0/24")
	if again := l.ask("a"); again != "10.2.0.1/32 10.2.0.0/32" {
		t.Errorf("a had %s and has %s", a, again)
	}
	l.leases.Close()
}

// Nothing that may have become of the file keeps an endpoint from serving.
func TestLeaseFileOutOfOrder(t *testing.T) {
	for _, tt := range []struct {
		name  string
		spoil func(file []byte) []byte
		kept  bool // the first lease
		warns int
	}{
		{"torn", func(b []byte) []byte { return b[:len(b)-5] }, true, 1},
		{"zeros at the end", func(b []byte) []byte { return append(b, make([]byte, 100)...) }, true, 1},
		{"empty", func([]byte) []byte { return nil }, false, 0},
		{"of another version", func(b []byte) []byte { b[7]++; return b }, false, 1},
		{"of another kind", func([]byte) []byte { return []byte("root:x:0:0:root") }, false, 1},
		{"damaged in the middle", func(b []byte) []byte {
			return append(slices.Clone(b), append([]byte("rubbish, and more of it than a header has"), b...)...)
		}, true, 1},
		{"records of another kind", func(b []byte) []byte { return bytes.ReplaceAll(b, []byte("id"), []byte("di")) }, false, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := begin(t, leasePath(t), "10.0.0.0/24")
			a := l.ask("a")
			l.ask("b")
			l.leases.Close()
			file, err := os.ReadFile(l.path)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(l.path, tt.spoil(file), 0o600); err != nil {
				t.Fatal(err)
			}
			l = begin(t, l.path, "10.0.0.0/24")
			if n := strings.Count(l.log.String(), "level=WARN"); n != tt.warns {
				t.Errorf("%d warnings, want %d: %s", n, tt.warns, l.log.String())
			}
			if c := l.ask("c"); (c != a) != tt.kept {
				t.Errorf("c has %s, a had %s", c, a)
			}
			l = l.restart("10.0.0.0/24")
			if strings.Contains(l.log.String(), "level=WARN") {
				t.Errorf("warned again: %s", l.log.String())
			}
			l.leases.Close()
		})
	}
}

// A lease is kept for as long as it was to be kept, even if the clock was set back by
// a year since.
func TestLeasesWhenTheClockIsSetBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := leasePath(t)
		if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		j, err := journal.Open(journal.Config{Path: path, Kind: "NSMIPL", Version: 1, Noun: "file"}, nil)
		if err != nil {
			t.Fatal(err)
		}
		later := time.Now().Add(365 * 24 * time.Hour)
		payload, err := json.Marshal(record{ID: "a", Written: later, Expires: later.Add(tokenLife),
			Src: []netip.Prefix{netip.MustParsePrefix("10.0.0.1/32")}, Dst: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/32")}})
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(j.Append(journal.Put, payload), j.Close()); err != nil {
			t.Fatal(err)
		}
		l := begin(t, path, "10.0.0.0/24")
		time.Sleep(tokenLife - time.Second)
		if b := l.ask("b"); b != "10.0.0.3/32 10.0.0.2/32" {
			t.Errorf("b has %s, a lives", b)
		}
		time.Sleep(time.Second)
		if c := l.ask("c"); c != "10.0.0.1/32 10.0.0.0/32" {
			t.Errorf("c has %s, a is gone", c)
		}
		l.leases.Close()
	})
}

// A full disk refuses no wire. It is told once, and what could not be written is
// written with the next refresh.
func TestLeasesOnAFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=64k,mode=0700"); err != nil {
		t.Skipf("needs root to mount a small file system: %v", err)
	}
	t.Cleanup(func() { syscall.Unmount(dir, syscall.MNT_DETACH) })
	l := begin(t, filepath.Join(dir, "leases"), "10.0.0.0/16")
	filler := filepath.Join(dir, "filler")
	if err := os.WriteFile(filler, make([]byte, 128<<10), 0o600); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("filling the disk: %v", err)
	}
	had := make(map[string]string)
	for i := range 100 { // the last page takes some
		id := fmt.Sprint(i)
		had[id] = l.ask(id)
	}
	if n := strings.Count(l.log.String(), "level=WARN"); n != 1 {
		t.Errorf("%d warnings: %s", n, l.log.String())
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	for id := range had {
		l.ask(id)
	}
	l = l.restart("10.0.0.0/16")
	l.ask("new")
	for id, want := range had {
		if got := l.ask(id); got != want {
			t.Errorf("%s has %s, had %s", id, got, want)
		}
	}
	l.leases.Close()
}

func TestOneOwnerOfLeases(t *testing.T) {
	l := begin(t, leasePath(t), "10.0.0.0/24")
	defer l.leases.Close()
	if _, err := OpenLeases(l.path, l.pool, nil); !errors.Is(err, nserr.StateDir) {
		t.Errorf("opened twice: %v", err)
	}
}

// TestLeasesKeepTheirOwners: whatever happens to clients and to the endpoint, no
// address is of two wires that live, and every wire that lives keeps its own.
func TestLeasesKeepTheirOwners(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		const cidr = "10.0.0.0/27,fd00::/123" // room for 16
		dir, err := os.MkdirTemp("", "leases")
		if err != nil {
			rt.Fatal(err)
		}
		defer os.RemoveAll(dir)
		l := begin(t, filepath.Join(dir, "leases"), cidr)
		defer func() { l.leases.Close() }()
		ids := rapid.SampledFrom([]string{"a", "b", "c", "d", "e", "f", "g", "h"})
		live := make(map[string]string)
		ask := func(id string) {
			got := l.ask(id)
			if had, lives := live[id]; lives && got != had {
				rt.Fatalf("%s had %s and has %s", id, had, got)
			}
			live[id] = got
		}
		rt.Repeat(map[string]func(*rapid.T){
			"request or refresh": func(t *rapid.T) { ask(ids.Draw(t, "id")) },
			"heal": func(t *rapid.T) { // closed, and in between others come and go
				healing := rapid.SliceOfNDistinct(ids, 1, 4, rapid.ID).Draw(t, "ids")
				for _, id := range healing {
					l.close(id, networkservice.State_RESELECT_REQUESTED)
				}
				if rapid.Bool().Draw(t, "restart") {
					l = l.restart(cidr)
				}
				ask(ids.Draw(t, "other"))
				for _, id := range healing {
					if live[id] != "" {
						ask(id)
					}
				}
			},
			"close": func(t *rapid.T) {
				id := ids.Draw(t, "id")
				if live[id] != "" {
					l.close(id, networkservice.State_UP)
					delete(live, id)
				}
			},
			"restart": func(*rapid.T) { l = l.restart(cidr) },
			"": func(t *rapid.T) {
				owner := make(map[string]string)
				for id, addrs := range live {
					for addr := range strings.FieldsSeq(addrs) {
						if other := owner[addr]; other != "" {
							t.Fatalf("%s and %s both have %s", id, other, addr)
						}
						owner[addr] = id
					}
				}
			},
		})
	})
}
