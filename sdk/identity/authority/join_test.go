// SPDX-License-Identifier: Apache-2.0

package authority

import (
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/openvwire/nsm/internal/statedir"
	"github.com/openvwire/nsm/sdk/nserr"
)

var noon = time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)

func newLedger(t *testing.T, path string) *ledger {
	t.Helper()
	dir, err := statedir.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dir.Close() })
	l, err := openLedger(dir)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// Each row redeems a token, in this order, against one ledger; restarts in
// between make no difference.
func TestLedger(t *testing.T) {
	path := t.TempDir() + "/state"
	l := newLedger(t, path)
	anyNode, forB, expired, kept := [16]byte{1}, [16]byte{2}, [16]byte{3}, [16]byte{4}
	for _, tt := range []struct {
		secret [16]byte
		node   string
		life   time.Duration
	}{{anyNode, "", 15 * time.Minute}, {forB, "b", 15 * time.Minute}, {expired, "", time.Minute}, {kept, "", 2 * time.Hour}} {
		if err := l.create(tt.secret, tt.node, noon, noon.Add(tt.life)); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		name   string
		secret []byte
		node   string
		key    string
		after  time.Duration
		want   *nserr.Reason // nil = let in
	}{
		{"no secret", nil, "c", "k", 0, nserr.BadJoinToken},
		{"unknown", make([]byte, 16), "c", "k", 0, nserr.BadJoinToken},
		{"cut", anyNode[:15], "c", "k", 0, nserr.BadJoinToken},
		{"expired", expired[:], "c", "k", time.Minute, nserr.BadJoinToken},
		{"long expired", expired[:], "c", "k", 25 * time.Hour, nserr.BadJoinToken},
		{"for another node", forB[:], "c", "k", 0, nserr.BadJoinToken},
		{"first use", anyNode[:], "c", "k", time.Minute, nil},
		{"answer was lost", anyNode[:], "c", "k", 2 * time.Minute, nil},
		{"used", anyNode[:], "c", "other", 2 * time.Minute, nserr.BadJoinToken},
		{"used for another node", anyNode[:], "d", "k", 2 * time.Minute, nserr.BadJoinToken},
		{"used and expired", anyNode[:], "c", "k", 15 * time.Minute, nserr.BadJoinToken},
		{"name is taken", kept[:], "c", "k2", time.Minute, nserr.NameOwned},
		{"that did not use it up", kept[:], "d", "k2", time.Minute, nil},
		{"named node", forB[:], "b", "k3", time.Minute, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := l.redeem(tt.secret, tt.node, []byte(tt.key), noon.Add(tt.after))
			if tt.want == nil && err != nil || tt.want != nil && !errors.Is(err, tt.want) {
				t.Errorf("redeem() = %v, want %v", err, tt.want)
			}
			l.dir.Close()
			l = newLedger(t, path)
		})
	}
	// A node that lost its state comes back with a token for its name.
	if err := l.create([16]byte{9}, "b", noon, noon.Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	again := [16]byte{9}
	if err := l.redeem(again[:], "b", []byte("k9"), noon); err != nil {
		t.Errorf("rejoin: %v", err)
	}
}

// A token whose use cannot be recorded lets nobody in and can be used later.
func TestLedgerCannotWrite(t *testing.T) {
	path := t.TempDir() + "/state"
	l := newLedger(t, path)
	secret := [16]byte{1}
	if err := l.create(secret, "", noon, noon.Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path, path+".away"); err != nil {
		t.Fatal(err)
	}
	if err := l.redeem(secret[:], "b", []byte("k"), noon); !errors.Is(err, nserr.StateDir) {
		t.Errorf("redeem() = %v", err)
	}
	if err := os.Rename(path+".away", path); err != nil {
		t.Fatal(err)
	}
	if err := l.redeem(secret[:], "b", []byte("other"), noon); err != nil {
		t.Errorf("redeem() once the disk is back = %v", err)
	}
}

// What a later version has written into the ledger is still there when this one
// has changed it.
func TestLedgerOfLaterVersion(t *testing.T) {
	path := t.TempDir() + "/state"
	l := newLedger(t, path)
	forB := [16]byte{2}
	if err := l.create(forB, "b", noon, noon.Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	l.dir.Close()
	file := path + "/" + ledgerFile
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Replace(string(data), `"tokens": [`, `"version": 2, "revoked": ["x"], "tokens": [`, 1)
	text = strings.Replace(text, `"hash":`, `"labels": {"zone": "east"}, "hash":`, 1)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	l = newLedger(t, path)
	if err := l.redeem(forB[:], "b", []byte("k"), noon); err != nil {
		t.Fatal(err)
	}
	if data, err = os.ReadFile(file); err != nil {
		t.Fatal(err)
	}
	var got struct {
		Version int
		Revoked []string
		Tokens  []struct {
			Labels map[string]string
			UsedBy string `json:"used_by"`
		}
	}
	if err := json.Unmarshal(data, &got); err != nil {
		t.Fatal(err)
	}
	if got.Version != 2 || len(got.Revoked) != 1 || len(got.Tokens) != 1 || got.Tokens[0].Labels["zone"] != "east" || got.Tokens[0].UsedBy != "b" {
		t.Errorf("it holds %s", data)
	}
	l.dir.Close()
	if err := os.WriteFile(file, []byte(`{"version":2,"nodes":[]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	dir, err := statedir.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	if _, err := openLedger(dir); !errors.Is(err, nserr.StateDir) || !strings.Contains(err.Error(), "later version") {
		t.Errorf("openLedger() = %v", err)
	}
}

func TestLedgerIsBounded(t *testing.T) {
	l := newLedger(t, t.TempDir()+"/state")
	for range maxTokens {
		l.book.Tokens = append(l.book.Tokens, entry{Expires: noon})
	}
	if err := l.create([16]byte{1}, "", noon, noon.Add(time.Hour)); !errors.Is(err, nserr.Busy) {
		t.Errorf("create() = %v", err)
	}
	later := noon.Add(keepExpired + time.Second)
	if err := l.create([16]byte{1}, "", later, later.Add(time.Hour)); err != nil || len(l.book.Tokens) != 1 {
		t.Errorf("create() when the others are gone = %v, %d tokens", err, len(l.book.Tokens))
	}
}

func TestLimiter(t *testing.T) {
	var l limiter
	host := netip.MustParseAddr("192.0.2.1")
	for i := range maxFails {
		if l.blocked(host, noon) {
			t.Fatalf("blocked after %d failures", i)
		}
		l.failed(host, noon.Add(time.Duration(i)*time.Second))
	}
	for _, tt := range []struct {
		host  string
		after time.Duration
		want  bool
	}{
		{"192.0.2.1", 0, true},
		{"::ffff:192.0.2.1", 0, true},
		{"192.0.2.2", 0, false},
		{"192.0.2.1", failWindow - 1, true},
		{"192.0.2.1", failWindow, false},
	} {
		if got := l.blocked(netip.MustParseAddr(tt.host), noon.Add(tt.after)); got != tt.want {
			t.Errorf("blocked(%s after %v) = %v", tt.host, tt.after, got)
		}
	}
	for i := range maxFails {
		l.failed(netip.AddrFrom16([16]byte{0x20, 0x01, 15: byte(i)}), noon)
	}
	if !l.blocked(netip.MustParseAddr("2001::ffff"), noon) {
		t.Error("a host with many IPv6 addresses counts as many")
	}
	for i := range 3 * maxHosts {
		l.failed(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), noon)
	}
	if len(l.hosts) > maxHosts {
		t.Errorf("%d hosts are remembered", len(l.hosts))
	}
}
