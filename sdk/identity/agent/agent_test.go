// SPDX-License-Identifier: Apache-2.0

package agent

// What an agent does together with an authority is tested in package authority.

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"log/slog"
	"math/big"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"go.uber.org/goleak"

	"github.com/openvwire/nsm/internal/statedir"
	"github.com/openvwire/nsm/sdk/identity"
	"github.com/openvwire/nsm/sdk/identity/authority"
	"github.com/openvwire/nsm/sdk/identity/jointoken"
	"github.com/openvwire/nsm/sdk/nserr"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var quiet = slog.New(slog.DiscardHandler)

// joined returns the configuration of a node that has joined, without its token.
func joined(t *testing.T) Config {
	t.Helper()
	a, err := authority.New(t.Context(), authority.Config{
		Node: "a", StateDir: filepath.Join(t.TempDir(), "state"), ListenOn: "tcp://127.0.0.1:0", Logger: quiet,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	c := Config{Node: "b", StateDir: filepath.Join(t.TempDir(), "state"), Logger: quiet}
	token, err := a.CreateToken(t.Context(), "b", 0)
	if err != nil {
		t.Fatal(err)
	}
	withToken := c
	withToken.Token = token
	b, err := New(t.Context(), withToken)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if err := b.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
	return c
}

// Each row damages what is stored and says what starting again answers.
func TestStored(t *testing.T) {
	c := joined(t)
	file := filepath.Join(c.StateDir, StateFile)
	good, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		content string
		mode    os.FileMode
		node    string
		want    *nserr.Reason // nil = starts
	}{
		"untouched":     {string(good), 0o600, "b", nil},
		"readable":      {string(good), 0o644, "b", nserr.StateDir},
		"cut":           {string(good[:len(good)/2]), 0o600, "b", nserr.StateDir},
		"empty":         {"", 0o600, "b", nserr.StateDir},
		"not an object": {`null`, 0o600, "b", nserr.StateDir},
		"other file":    {`{"nodes":{}}`, 0o600, "b", nserr.NoIdentity},
		"nothing in it": {"{}", 0o600, "b", nserr.NoIdentity},
		"broken key":    {strings.Replace(string(good), `"key": "M`, `"key": "N`, 1), 0o600, "b", nserr.NoIdentity},
		"other node":    {string(good), 0o600, "c", nserr.NoIdentity},
	} {
		t.Run(name, func(t *testing.T) {
			if err := errors.Join(os.WriteFile(file, []byte(tt.content), tt.mode), os.Chmod(file, tt.mode)); err != nil {
				t.Fatal(err)
			}
			c := c
			c.Node = tt.node
			b, err := New(t.Context(), c)
			if err == nil {
				err = b.Close()
			}
			if tt.want == nil && err != nil || tt.want != nil && !errors.Is(err, tt.want) {
				t.Errorf("New() = %v, want %v", err, tt.want)
			}
		})
	}
}

// A node that was away for longer than its identity lives has to join again.
func TestAwayForTooLong(t *testing.T) {
	c := joined(t)
	s := stored(t, c)
	if _, err := s.membership(c.Node, time.Now().Add(23*time.Hour)); err != nil {
		t.Errorf("away for 23 hours: %v", err)
	}
	if _, err := s.membership(c.Node, time.Now().Add(25*time.Hour)); err == nil || !strings.Contains(err.Error(), "expired") {
		t.Errorf("away for 25 hours: %v", err)
	}
}

func stored(t *testing.T, c Config) (s state) {
	t.Helper()
	dir, err := statedir.Open(c.StateDir)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	if s, err = load(dir); err != nil {
		t.Fatal(err)
	}
	return s
}

// What a later version has written is used if it can be, and is kept; if it
// cannot, the node does not take it for damage, nor for nothing.
func TestStoredByLaterVersion(t *testing.T) {
	c := joined(t)
	file := filepath.Join(c.StateDir, StateFile)
	good, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	more := `{"version": 2, "labels": {"zone": "east"}, `
	if err := os.WriteFile(file, []byte(strings.Replace(string(good), "{", more, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the first rewrites it
		b, err := New(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		b.Close()
	}
	data, err := os.ReadFile(file)
	if err != nil || !strings.Contains(string(data), `"zone": "east"`) || !strings.Contains(string(data), `"version": 2`) {
		t.Errorf("what the later version has written is lost: %s, %v", data, err)
	}
	for name, text := range map[string]string{
		"other type":  strings.Replace(string(good), `"authority": [`, `"version": 2, "authority": {}, "x": [`, 1),
		"other names": strings.NewReplacer(`"chain"`, `"version": 3, "svid"`, `"key"`, `"private"`).Replace(string(good)),
	} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		c.Token = ""
		if _, err := New(t.Context(), c); !errors.Is(err, nserr.StateDir) || !strings.Contains(err.Error(), "later version") {
			t.Errorf("%s: %v", name, err)
		}
		if data, err := os.ReadFile(file); err != nil || string(data) != text {
			t.Errorf("%s: the file has changed: %s, %v", name, data, err)
		}
	}
}

// A failed attempt to join another domain leaves the membership as it is, and
// keeps the key for the next attempt with the same token.
func TestFailedJoinLosesNothing(t *testing.T) {
	c := joined(t)
	before := stored(t, c)
	a, err := authority.New(t.Context(), authority.Config{
		TrustDomain: "other.example", Node: "a", StateDir: filepath.Join(t.TempDir(), "state"), ListenOn: "tcp://127.0.0.1:0", Logger: quiet,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	text, err := a.CreateToken(t.Context(), "somebody-else", 0)
	if err != nil {
		t.Fatal(err)
	}
	c.Token = text
	var keys []string
	for range 2 {
		if _, err := New(t.Context(), c); !errors.Is(err, nserr.BadJoinToken) {
			t.Fatalf("New() = %v", err)
		}
		after := stored(t, c)
		if string(after.Key) != string(before.Key) || len(after.Chain) != len(before.Chain) {
			t.Error("the membership is lost")
		}
		keys = append(keys, string(after.Join.Key))
	}
	if keys[0] != keys[1] {
		t.Error("the second attempt used another key")
	}
	c.Token = ""
	b, err := New(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	b.Close()
}

func TestRefusedConfig(t *testing.T) {
	for name, c := range map[string]Config{
		"no node":            {StateDir: t.TempDir()},
		"no state directory": {Node: "b"},
	} {
		c.Logger = quiet
		if _, err := New(t.Context(), c); !errors.Is(err, nserr.BadFlag) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, text := range map[string]string{"mistyped": "nsm1x", "file name": "/etc/token"} {
		c := Config{Node: "b", StateDir: filepath.Join(t.TempDir(), "state"), Token: text, Logger: quiet}
		if _, err := New(t.Context(), c); !errors.Is(err, nserr.BadJoinToken) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestPinRefuses(t *testing.T) {
	p := &pin{token: jointoken.Token{CA: [32]byte{1}}}
	for name, raw := range map[string][][]byte{"nothing": nil, "garbage": {[]byte("x")}} {
		if err := p.verify(raw, nil); err == nil || p.stranger.Load() == nil {
			t.Errorf("%s is taken for the authority", name)
		}
	}
}

// A clock that is an hour behind or two years ahead is not the fault of the token.
func TestClocksAtJoin(t *testing.T) {
	td := spiffeid.RequireTrustDomainFromString("nsm.local")
	for name, tt := range map[string]struct {
		ca, leaf  time.Duration // since when they are valid, for an hour; the CA's is longer
		wantClock bool
	}{
		"right":  {-time.Minute, -time.Minute, false},
		"behind": {time.Hour, time.Hour, true},
		"ahead":  {-3 * time.Hour, -2 * time.Hour, true},
	} {
		t.Run(name, func(t *testing.T) {
			ca, caKey := certificate(t, &x509.Certificate{
				URIs: []*url.URL{td.ID().URL()}, NotBefore: time.Now().Add(tt.ca), NotAfter: time.Now().Add(tt.ca + 5*time.Hour),
				IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
			}, nil, nil)
			leaf, _ := certificate(t, &x509.Certificate{
				URIs: []*url.URL{identity.AuthorityID(td).URL()}, NotBefore: time.Now().Add(tt.leaf), NotAfter: time.Now().Add(tt.leaf + time.Hour),
				BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
			}, ca, caKey)
			p := &pin{token: jointoken.Token{TrustDomain: td, CA: sha256.Sum256(ca.Raw)}}
			err := p.verify([][]byte{leaf.Raw, ca.Raw}, nil)
			if !tt.wantClock {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if err == nil {
				t.Fatal("it is taken for valid")
			}
			if e := blameClocks(nserr.BadJoinToken.Errorf("join: %w", err), time.Unix(0, 0)); !strings.Contains(e.HowToFix(), "clocks") || !strings.Contains(e.HowToFix(), "1970-01-01T00:00:00Z") {
				t.Error(e)
			}
		})
	}
	if e := blameClocks(nserr.BadJoinToken.Errorf("join: %w", errors.New("nobody is there")), time.Now()); strings.Contains(e.HowToFix(), "clock") {
		t.Errorf("blamed without a reason: %v", e)
	}
}

// certificate signs a template, with its own key without a parent.
func certificate(t *testing.T, template, parent *x509.Certificate, signer *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := identity.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	if parent == nil {
		parent, signer = template, key
	}
	template.SerialNumber = big.NewInt(1)
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert, key
}

func TestRegistryURL(t *testing.T) {
	at := func(address string) net.Addr { return net.TCPAddrFromAddrPort(netip.MustParseAddrPort(address)) }
	for _, tt := range []struct {
		told string
		at   net.Addr
		want string // "" = refused
	}{
		{"", at("10.0.0.1:5007"), "tcp://10.0.0.1:5002"},
		{"tcp://:5777", at("10.0.0.1:5007"), "tcp://10.0.0.1:5777"},
		{"tcp://:5777", at("[::ffff:10.0.0.1]:5007"), "tcp://10.0.0.1:5777"},
		{"tcp://:5777", at("[fd00::1]:5007"), "tcp://[fd00::1]:5777"},
		{"tcp://10.0.0.9:5002", at("10.0.0.1:5007"), "tcp://10.0.0.9:5002"},
		{"tcp://registry.example:5002", at("10.0.0.1:5007"), "tcp://registry.example:5002"},
		{"10.0.0.9:5002", at("10.0.0.1:5007"), "tcp://10.0.0.9:5002"},
		{"tcp://[fd00::9]:5002", nil, "tcp://[fd00::9]:5002"},
		{"tcp://:5777", nil, ""},
		{"tcp://10.0.0.9", at("10.0.0.1:5007"), ""},
		{"tcp://10.0.0.9:", at("10.0.0.1:5007"), ""},
		{"unix:///run/registry.sock", at("10.0.0.1:5007"), ""},
		{"http://10.0.0.9:80", at("10.0.0.1:5007"), ""},
	} {
		got, err := registryURL(tt.told, tt.at)
		if got != tt.want || (tt.want == "") != errors.Is(err, nserr.BadAnswer) {
			t.Errorf("registryURL(%q, %v) = %q, %v, want %q", tt.told, tt.at, got, err, tt.want)
		}
	}
}

func TestCache(t *testing.T) {
	var c cache
	noon := time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)
	svid := &x509svid.SVID{Certificates: []*x509.Certificate{{NotAfter: noon.Add(time.Hour)}}}
	of := subject{uid: 1}
	c.put(of, svid, noon)
	for _, tt := range []struct {
		of           subject
		after        time.Duration
		fresh, valid bool
	}{
		{of, 0, true, true},
		{of, 15*time.Minute - 1, true, true},
		{of, 15 * time.Minute, false, true},
		{of, time.Hour - 1, false, true},
		{of, time.Hour, false, false},
		{subject{uid: 1, exe: "/x"}, 0, false, false},
	} {
		now := noon.Add(tt.after)
		if fresh, valid := c.fresh(tt.of, now) != nil, c.valid(tt.of, now) != nil; fresh != tt.fresh || valid != tt.valid {
			t.Errorf("%+v after %v: fresh %v, valid %v", tt.of, tt.after, fresh, valid)
		}
	}
	for uid := range uint32(2 * maxCached) {
		c.put(subject{uid: uid}, svid, noon)
	}
	if len(c.svids) != maxCached {
		t.Errorf("%d are cached, want %d", len(c.svids), maxCached)
	}
	c.put(subject{gid: 9}, &x509svid.SVID{Certificates: []*x509.Certificate{{NotAfter: noon.Add(2 * time.Hour)}}}, noon.Add(time.Hour))
	if len(c.svids) != 1 {
		t.Errorf("%d are cached after the others expired, want 1", len(c.svids))
	}
}
