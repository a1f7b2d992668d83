// SPDX-License-Identifier: Apache-2.0

package jointoken_test

import (
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/openvwire/nsm/sdk/identity/jointoken"
	"github.com/openvwire/nsm/sdk/nserr"
)

func example() jointoken.Token {
	return jointoken.Token{
		Secret:      jointoken.NewSecret(),
		CA:          [32]byte{1, 2, 3},
		TrustDomain: spiffeid.RequireTrustDomainFromString("nsm.local"),
		Node:        "b",
		Addresses:   []string{"192.0.2.1:5007", "[2001:db8::1]:5007"},
	}
}

func TestRoundTrip(t *testing.T) {
	anyNode := example()
	anyNode.Node = ""
	for _, want := range []jointoken.Token{example(), anyNode} {
		got, err := jointoken.Parse(" " + want.Encode() + "\n")
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("Parse(Encode()) = %v, %v, want %v", got, err, want)
		}
	}
}

func TestSecretStaysSecret(t *testing.T) {
	token := example()
	var log strings.Builder
	slog.New(slog.NewTextHandler(&log, nil)).Info("join", "token", token)
	for _, shown := range []string{token.String(), fmt.Sprintf("%v %+v %s", token, token, token), log.String()} {
		for _, secret := range []string{token.Encode(), fmt.Sprint(token.Secret), fmt.Sprintf("%x", token.Secret)} {
			if strings.Contains(shown, secret) {
				t.Errorf("%q shows the secret", shown)
			}
		}
	}
}

func TestRefused(t *testing.T) {
	with := func(f func(*jointoken.Token)) string {
		token := example()
		f(&token)
		return token.Encode()
	}
	good := example().Encode()
	for name, text := range map[string]string{
		"empty":            "",
		"other text":       "hello",
		"prefix alone":     "nsm1",
		"cut":              good[:len(good)-1],
		"cut to nothing":   good[:8],
		"one letter wrong": good[:20] + flip(good[20]) + good[21:],
		"broken line":      good[:30] + "\n" + good[30:],
		"padded":           good + "=",
		"not base64":       "nsm1!!!!",
		"no address":       with(func(t *jointoken.Token) { t.Addresses = nil }),
		"17 addresses":     with(func(t *jointoken.Token) { t.Addresses = strings.Fields(strings.Repeat("a:1 ", 17)) }),
		"no port":          with(func(t *jointoken.Token) { t.Addresses = []string{"192.0.2.1"} }),
		"no host":          with(func(t *jointoken.Token) { t.Addresses = []string{":5007"} }),
		"no domain":        with(func(t *jointoken.Token) { t.TrustDomain = spiffeid.TrustDomain{} }),
	} {
		t.Run(name, func(t *testing.T) {
			if token, err := jointoken.Parse(text); !errors.Is(err, nserr.BadJoinToken) {
				t.Errorf("Parse = %v, %v, want %v", token, err, nserr.BadJoinToken)
			}
		})
	}
	for _, name := range []string{"a/b", "..", "a b", "", strings.Repeat("a", 254), "ä"} {
		if err := jointoken.CheckNode(name); !errors.Is(err, nserr.BadFlag) {
			t.Errorf("CheckNode(%q) = %v", name, err)
		}
		if name == "" || len(name) > 253 {
			continue
		}
		if _, err := jointoken.Parse(with(func(t *jointoken.Token) { t.Node = name })); err == nil {
			t.Errorf("a token for the node %q was accepted", name)
		}
	}
}

func flip(c byte) string {
	if c == 'A' {
		return "B"
	}
	return "A"
}

// What Parse accepts has one form only, and nothing makes it panic. The check
// is put right, as the fuzzer would hardly find it.
func FuzzParse(f *testing.F) {
	for _, text := range []string{example().Encode(), "nsm1" + base64.RawURLEncoding.EncodeToString(make([]byte, 60)), "nsm1AAAA"} {
		data, err := base64.RawURLEncoding.DecodeString(text[4:])
		if err != nil || len(data) < 3 {
			f.Fatal(text, err)
		}
		f.Add(text, data[:max(0, len(data)-4)])
	}
	f.Fuzz(func(t *testing.T, text string, data []byte) {
		sum := sha256.Sum256(data)
		checked := "nsm1" + base64.RawURLEncoding.EncodeToString(append(data[:len(data):len(data)], sum[:4]...))
		for _, text := range []string{text, checked} {
			token, err := jointoken.Parse(text)
			if err != nil {
				continue
			}
			if again := token.Encode(); again != strings.TrimSpace(text) {
				t.Errorf("%q is read as %q", text, again)
			}
		}
	})
}
