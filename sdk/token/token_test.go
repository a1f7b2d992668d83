// SPDX-License-Identifier: Apache-2.0

package token_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/openvwire/nsm/sdk/nserr"
	"github.com/openvwire/nsm/sdk/token"
)

type source struct{ svid *x509svid.SVID }

func (s *source) GetX509SVID() (*x509svid.SVID, error) { return s.svid, nil }

func newSVID(t testing.TB, id string, key crypto.Signer, notAfter time.Time) *x509svid.SVID {
	t.Helper()
	uri, err := url.Parse(id)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), URIs: []*url.URL{uri}, NotBefore: time.Now().Add(-time.Hour), NotAfter: notAfter}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &x509svid.SVID{ID: spiffeid.RequireFromString(id), Certificates: []*x509.Certificate{cert}, PrivateKey: key}
}

// tokenOf is a token for nobody in particular that svid has signed.
func tokenOf(t testing.TB, svid *x509svid.SVID) token.Token {
	t.Helper()
	raw, _, err := token.NewGenerator(&source{svid}, time.Minute)(nil)
	if err != nil {
		t.Fatal(err)
	}
	tok, err := token.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

func p256(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

const alice, bob = "spiffe://d/alice", "spiffe://d/bob"

func TestGenerate(t *testing.T) {
	now := time.Now()
	a := newSVID(t, alice, p256(t), now.Add(time.Hour))
	b := newSVID(t, bob, p256(t), now.Add(5*time.Minute))
	make := token.NewGenerator(&source{a}, 10*time.Minute)

	raw, expires, err := make(b.Certificates[0])
	if err != nil {
		t.Fatal(err)
	}
	tok, err := token.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	if tok.Subject != alice || !tok.For(bob) || tok.For(alice) {
		t.Errorf("token says sub %q aud %v", tok.Subject, tok.Audience)
	}
	if got := tok.Expires.Sub(now).Round(2 * time.Second); got != 10*time.Minute {
		t.Errorf("exp claim in %v, want 10m: the peer's certificate must not shorten it", got)
	}
	if !expires.Equal(b.Certificates[0].NotAfter) {
		t.Errorf("segment expires %v, want the end of the peer's certificate %v", expires, b.Certificates[0].NotAfter)
	}
	if err := tok.VerifiedBy(a.Certificates[0]); err != nil {
		t.Error(err)
	}
	if err := tok.VerifiedBy(b.Certificates[0]); !errors.Is(err, nserr.ForeignToken) {
		t.Errorf("verified by another key: %v", err)
	}
	if err := tok.VerifiedBy(nil); !errors.Is(err, nserr.ForeignToken) {
		t.Errorf("verified by nobody: %v", err)
	}

	raw, _, err = make(nil)
	if err != nil {
		t.Fatal(err)
	}
	if tok, _ := token.Parse(raw); len(tok.Audience) != 0 {
		t.Errorf("token for an unknown peer has audience %v", tok.Audience)
	}
}

// The right key with somebody else's name is no identity.
func TestSubjectMustBeTheSigner(t *testing.T) {
	key := p256(t)
	liar := newSVID(t, alice, key, time.Now().Add(time.Hour))
	tok := tokenOf(t, liar)
	honest := newSVID(t, bob, key, time.Now().Add(time.Hour))
	if err := tok.VerifiedBy(honest.Certificates[0]); !errors.Is(err, nserr.ForeignToken) {
		t.Errorf("error = %v", err)
	}
}

func TestReuse(t *testing.T) {
	key, other := p256(t), p256(t)
	synctest.Test(t, func(t *testing.T) {
		src := &source{newSVID(t, alice, key, time.Now().Add(time.Hour))}
		make := token.NewGenerator(src, 10*time.Minute)
		first, _, _ := make(nil)
		time.Sleep(59 * time.Second)
		if again, _, _ := make(nil); again != first {
			t.Error("a young token was not used again")
		}
		time.Sleep(2 * time.Second)
		second, _, _ := make(nil)
		if second == first {
			t.Error("a token was used for more than a tenth of its life")
		}
		src.svid = newSVID(t, alice, other, time.Now().Add(time.Hour))
		third, _, _ := make(nil)
		tok, err := token.Parse(third)
		if err != nil {
			t.Fatal(err)
		}
		if err := tok.VerifiedBy(src.svid.Certificates[0]); err != nil {
			t.Error("after a rotation:", err)
		}
	})
}

func TestLifetimeEndsWithTheSVID(t *testing.T) {
	end := time.Now().Add(90 * time.Second)
	raw, expires, err := token.NewGenerator(&source{newSVID(t, alice, p256(t), end)}, time.Hour)(nil)
	if err != nil {
		t.Fatal(err)
	}
	tok, _ := token.Parse(raw)
	if tok.Expires.After(end) || expires.After(end) {
		t.Errorf("token outlives the SVID: %v, %v > %v", tok.Expires, expires, end)
	}
}

func TestParseRefuses(t *testing.T) {
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	signed := func(m jwt.SigningMethod, key any, c jwt.Claims) string {
		raw, err := jwt.NewWithClaims(m, c).SignedString(key)
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	soon := jwt.NewNumericDate(time.Now().Add(time.Minute))
	for name, tt := range map[string]struct {
		raw string
		err error
	}{
		"empty":       {"", nserr.NoToken},
		"not a jwt":   {"a.b", nserr.BadToken},
		"huge":        {strings.Repeat("a", token.MaxLength+1), nserr.BadToken},
		"RS256":       {signed(jwt.SigningMethodRS256, rsaKey, jwt.RegisteredClaims{Subject: alice, ExpiresAt: soon}), nserr.BadToken},
		"alg none":    {signed(jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType, jwt.RegisteredClaims{Subject: alice, ExpiresAt: soon}), nserr.BadToken},
		"without exp": {signed(jwt.SigningMethodES256, p256(t), jwt.RegisteredClaims{Subject: alice}), nserr.BadToken},
	} {
		if tok, err := token.Parse(tt.raw); err == nil && tok.VerifiedBy(newSVID(t, alice, p256(t), time.Now().Add(time.Hour)).Certificates[0]) == nil {
			t.Errorf("%s: accepted", name)
		} else if err != nil && !errors.Is(err, tt.err) {
			t.Errorf("%s: error = %v, want %v", name, err, tt.err)
		}
	}
}

func TestCheckChain(t *testing.T) {
	now := time.Now()
	key := p256(t)
	tok := func(sub, aud string, exp time.Time) string {
		c := jwt.RegisteredClaims{Subject: sub, ExpiresAt: jwt.NewNumericDate(exp)}
		if aud != "" {
			c.Audience = jwt.ClaimStrings{aud}
		}
		raw, err := jwt.NewWithClaims(jwt.SigningMethodES256, c).SignedString(key)
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	later := now.Add(time.Minute)
	for name, tt := range map[string]struct {
		raws []string
		err  error
	}{
		"empty":       {nil, nil},
		"one":         {[]string{tok("a", "b", later)}, nil},
		"chained":     {[]string{tok("a", "b", later), tok("b", "c", later), tok("c", "b", later)}, nil},
		"broken":      {[]string{tok("a", "b", later), tok("x", "c", later)}, nserr.BrokenChain},
		"no audience": {[]string{tok("a", "", later), tok("b", "c", later)}, nserr.BrokenChain},
		"expired":     {[]string{tok("a", "b", later), tok("b", "c", now.Add(-time.Second))}, nserr.TokenExpired},
		"missing":     {[]string{tok("a", "b", later), ""}, nserr.NoToken},
	} {
		err := token.CheckChain(tt.raws, now)
		if (tt.err == nil) != (err == nil) || (tt.err != nil && !errors.Is(err, tt.err)) {
			t.Errorf("%s: error = %v, want %v", name, err, tt.err)
		}
	}
}

// FuzzParse compares Parse with the library: what Parse takes for a token the library
// does, too, and both read the same in it.
func FuzzParse(f *testing.F) {
	f.Add("")
	f.Add("a.b.c")
	f.Add("eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJzcGlmZmU6Ly9kL2EiLCJleHAiOjF9.AAAA")
	for _, claims := range []string{
		`{"sub":"a","aud":"b","exp":1}`, `{"sub":"a","aud":["b","c"],"exp":1.5e9}`, `{"sub":"a","aud":null,"exp":1,"nbf":2}`,
		`{"exp":1e300}`, `{"exp":-1}`, `{"aud":[null],"exp":1}`, `{"aud":[1],"exp":1}`, `{"SUB":"a","exp":1}`, `[]`, `null`,
	} {
		f.Add("eyJhbGciOiJFUzI1NiIsInR5cCI6IkpXVCJ9." + base64.RawURLEncoding.EncodeToString([]byte(claims)) + ".")
	}
	library := jwt.NewParser()
	f.Fuzz(func(t *testing.T, raw string) {
		tok, err := token.Parse(raw)
		if err == nil {
			var claims jwt.RegisteredClaims
			parsed, _, err := library.ParseUnverified(raw, &claims)
			switch {
			case err != nil:
				t.Errorf("the library refuses %q: %v", raw, err)
			case parsed.Method != jwt.SigningMethodES256:
				t.Errorf("taken, though signed with %v", parsed.Method)
			case claims.Subject != tok.Subject || !slices.Equal(claims.Audience, tok.Audience) || claims.ExpiresAt == nil || !claims.ExpiresAt.Equal(tok.Expires):
				t.Errorf("%+v, the library reads %+v", tok, claims)
			}
		}
		_ = token.CheckChain([]string{raw, raw}, time.Now())
	})
}

func BenchmarkParse(b *testing.B) {
	raw, _, err := token.NewGenerator(&source{newSVID(b, alice, p256(b), time.Now().Add(time.Hour))}, time.Minute)(newSVID(b, bob, p256(b), time.Now().Add(time.Hour)).Certificates[0])
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := token.Parse(raw); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkVerifiedBy(b *testing.B) {
	svid := newSVID(b, alice, p256(b), time.Now().Add(time.Hour))
	tok := tokenOf(b, svid)
	b.ReportAllocs()
	for b.Loop() {
		if err := tok.VerifiedBy(svid.Certificates[0]); err != nil {
			b.Fatal(err)
		}
	}
}

// A token that was verified is verified again without its signature being looked at, and
// only if the same key has to have signed it: neither another key nor another signature
// gains by it, nor what was refused before.
func TestVerifiedByAgain(t *testing.T) {
	signer, other := newSVID(t, alice, p256(t), time.Now().Add(time.Hour)), newSVID(t, alice, p256(t), time.Now().Add(time.Hour))
	tok := tokenOf(t, signer)
	verified := func() error { return tok.VerifiedBy(signer.Certificates[0]) }
	for range 3 {
		if err := tok.VerifiedBy(other.Certificates[0]); !errors.Is(err, nserr.ForeignToken) {
			t.Errorf("another key: %v", err)
		}
		if err := verified(); err != nil {
			t.Error(err)
		}
		dot := strings.LastIndexByte(tok.Raw, '.')
		first := "A"
		if strings.HasPrefix(tok.Raw[dot+1:], first) {
			first = "B"
		}
		forged, err := token.Parse(tok.Raw[:dot+1] + first + tok.Raw[dot+2:])
		if err != nil {
			t.Fatal(err)
		}
		if err := forged.VerifiedBy(signer.Certificates[0]); !errors.Is(err, nserr.ForeignToken) {
			t.Errorf("another signature: %v", err)
		}
	}
	before := testing.AllocsPerRun(100, func() { _ = tok.VerifiedBy(other.Certificates[0]) })
	if again := testing.AllocsPerRun(100, func() { _ = verified() }); again > before/2 {
		t.Errorf("%v allocations to verify again, %v to do so at first", again, before)
	}
}

// What was decoded before is the same again, whatever has come between.
func TestParseAgain(t *testing.T) {
	key := p256(t)
	src := &source{newSVID(t, alice, key, time.Now().Add(time.Hour))}
	first, _, err := token.NewGenerator(src, time.Minute)(nil)
	if err != nil {
		t.Fatal(err)
	}
	want, err := token.Parse(first)
	if err != nil {
		t.Fatal(err)
	}
	header, rest, _ := strings.Cut(first, ".")
	claims, signature, _ := strings.Cut(rest, ".")
	for i := range 2000 {
		// Another signature makes another token.
		other, err := token.Parse(header + "." + claims + "." + signature[:len(signature)-4] + fmt.Sprintf("%04d", i))
		if err != nil || other.Subject != want.Subject || other.Raw == want.Raw {
			t.Fatalf("%+v, %v", other, err)
		}
		if again, err := token.Parse(first); err != nil || !reflect.DeepEqual(again, want) {
			t.Fatalf("%+v, %v; want %+v", again, err, want)
		}
	}
}
