// SPDX-License-Identifier: Apache-2.0

package authority

import (
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/openvwire/nsm/sdk/identity"
)

var td = spiffeid.RequireTrustDomainFromString("nsm.local")

// Three years of an authority, looked at each day: what it signs is trusted by
// those who fetched the bundle up to two months before, and a day later.
func TestCARotation(t *testing.T) {
	const day = 24 * time.Hour
	start := time.Date(2026, 11, 20, 0, 0, 0, 0, time.UTC)
	key, err := identity.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	id := identity.AuthorityID(td)
	var cas []ca
	var history [][]ca // of each day
	made, signers := 0, map[string]bool{}
	for n := range 3 * 365 {
		now := start.Add(time.Duration(n) * day)
		next, changed, err := rotate(cas, td, now)
		if err != nil {
			t.Fatal(err)
		}
		if changed {
			made++
		}
		cas, history = next, append(history, next)
		if len(cas) < 1 || len(cas) > 2 {
			t.Fatalf("day %d: %d CAs", n, len(cas))
		}
		by := signer(cas, now)
		signers[string(by.cert.Raw)] = true
		chain, err := by.sign(id, &key.PublicKey, day, now)
		if err != nil {
			t.Fatal(err)
		}
		svid, err := identity.NewSVID(key, [][]byte{chain})
		if err != nil {
			t.Fatal(err)
		}
		if !svid.Certificates[0].NotAfter.Equal(now.Add(day)) {
			t.Errorf("day %d: the SVID is cut short to %v", n, svid.Certificates[0].NotAfter)
		}
		trusted := bundleOf(history[max(0, n-60)], td)
		if _, _, err := x509svid.Verify(svid.Certificates, trusted, x509svid.WithTime(now)); err != nil {
			t.Errorf("day %d: with the bundle of 60 days ago: %v", n, err)
		}
		tomorrow, _, err := rotate(cas, td, now.Add(day-time.Minute))
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := x509svid.Verify(svid.Certificates, bundleOf(tomorrow, td), x509svid.WithTime(now.Add(day-time.Minute))); err != nil {
			t.Errorf("day %d: a day later: %v", n, err)
		}
	}
	if made < 5 || len(signers) < 5 {
		t.Errorf("%d changes and %d signers in three years", made, len(signers))
	}
}

// An authority that was off for years starts over rather than not at all.
func TestAllCAsExpired(t *testing.T) {
	start := time.Date(2026, 11, 20, 0, 0, 0, 0, time.UTC)
	cas, _, err := rotate(nil, td, start)
	if err != nil {
		t.Fatal(err)
	}
	next, changed, err := rotate(cas, td, start.Add(2*caLife))
	if err != nil || !changed || len(next) != 1 || next[0].cert.Equal(cas[0].cert) {
		t.Errorf("rotate() = %v, %v, %v", next, changed, err)
	}
}

func TestSVIDNeverOutlivesItsCA(t *testing.T) {
	now := time.Now()
	c, err := newCA(td, now)
	if err != nil {
		t.Fatal(err)
	}
	key, _ := identity.NewKey()
	der, err := c.sign(identity.AuthorityID(td), &key.PublicKey, time.Hour, c.cert.NotAfter.Add(-time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	svid, err := identity.NewSVID(key, [][]byte{der})
	if err != nil || !svid.Certificates[0].NotAfter.Equal(c.cert.NotAfter) {
		t.Errorf("valid until %v, the CA until %v, %v", svid.Certificates[0].NotAfter, c.cert.NotAfter, err)
	}
}

func TestEncodeCAs(t *testing.T) {
	first, err := newCA(td, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	second, err := newCA(td, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	data, err := encodeCAs([]ca{first, second})
	if err != nil {
		t.Fatal(err)
	}
	got, err := decodeCAs(data, td)
	if err != nil || len(got) != 2 || !got[0].cert.Equal(first.cert) || !got[1].key.Equal(second.key) {
		t.Errorf("decodeCAs(encodeCAs()) = %v, %v", got, err)
	}
}

// Somebody replaces the CA, twice, one CA being announced when the next is asked
// for. Each row says who signs at a time, and who is trusted.
func TestReplace(t *testing.T) {
	const longest = 24 * time.Hour
	first, err := newCA(td, noon.Add(-30*24*time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	at := func(d time.Duration) time.Time { return noon.Add(d) }
	cas, err := replace([]ca{first}, td, at(0), at(time.Hour), longest)
	if err != nil {
		t.Fatal(err)
	}
	if cas, err = replace(cas, td, at(10*time.Minute), at(20*time.Minute), longest); err != nil {
		t.Fatal(err)
	}
	data, err := encodeCAs(cas) // a restart makes no difference
	if err != nil {
		t.Fatal(err)
	}
	if cas, err = decodeCAs(data, td); err != nil {
		t.Fatal(err)
	}
	names := map[string]string{string(cas[0].cert.Raw): "1", string(cas[1].cert.Raw): "2", string(cas[2].cert.Raw): "3"}
	for _, tt := range []struct {
		after           time.Duration
		signer, trusted string
	}{
		{10 * time.Minute, "1", "123"},
		{20*time.Minute - 1, "1", "123"},
		{20 * time.Minute, "3", "123"},
		{time.Hour, "3", "123"},
		{20*time.Minute + longest - 1, "3", "123"},
		{20*time.Minute + longest, "3", "3"},
		{caRenew, "3", "3"},
		{10*time.Minute + caRenew, "3", "34"},
		{10*time.Minute + caRenew + caAnnounce, "4", "34"},
	} {
		next, _, err := rotate(cas, td, at(tt.after))
		if err != nil {
			t.Fatal(err)
		}
		trusted := ""
		for _, c := range next {
			if names[string(c.cert.Raw)] == "" {
				names[string(c.cert.Raw)] = "4"
			}
			trusted += names[string(c.cert.Raw)]
		}
		if got := names[string(signer(next, at(tt.after)).cert.Raw)]; got != tt.signer || trusted != tt.trusted {
			t.Errorf("after %v CA %s signs and %s are trusted, want %s and %s", tt.after, got, trusted, tt.signer, tt.trusted)
		}
		cas = next
	}
}

// No SVID of a CA that leaves before its end outlives it.
func TestSVIDEndsWithTrust(t *testing.T) {
	c, err := newCA(td, noon)
	if err != nil {
		t.Fatal(err)
	}
	c.leaves = noon.Add(10 * time.Minute)
	key, _ := identity.NewKey()
	der, err := c.sign(identity.AuthorityID(td), &key.PublicKey, time.Hour, noon)
	if err != nil {
		t.Fatal(err)
	}
	svid, err := identity.NewSVID(key, [][]byte{der})
	if err != nil || !svid.Certificates[0].NotAfter.Equal(c.leaves) {
		t.Errorf("valid until %v, trusted until %v, %v", svid.Certificates[0].NotAfter, c.leaves, err)
	}
}

// What a later version says about a CA is kept; what nobody can read is refused.
func TestHeadersOfCAs(t *testing.T) {
	c, err := newCA(td, noon)
	if err != nil {
		t.Fatal(err)
	}
	c.rest = map[string]string{"Revoked-By": "root"}
	c.signs, c.leaves = noon.Add(time.Hour), noon.Add(2*time.Hour)
	data, err := encodeCAs([]ca{c})
	if err != nil {
		t.Fatal(err)
	}
	got, err := decodeCAs(data, td)
	if err != nil || got[0].rest["Revoked-By"] != "root" || !got[0].signs.Equal(c.signs) || !got[0].leaves.Equal(c.leaves) {
		t.Errorf("decodeCAs(encodeCAs()) = %+v, %v", got, err)
	}
	for _, name := range []string{pemSigns, pemLeaves} {
		bad := strings.Replace(string(data), name+": 2", name+": x", 1)
		if _, err := decodeCAs([]byte(bad), td); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
