// SPDX-License-Identifier: Apache-2.0

package authority

import (
	"context"
	"crypto/sha256"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/openvwire/nsm/sdk/identity"
	"github.com/openvwire/nsm/sdk/nserr"
)

// signedBy reports whether a CA has signed the SVID that somebody has now.
func signedBy(t *testing.T, a *Authority, source identity.Source, hash [sha256.Size]byte) bool {
	t.Helper()
	svid, err := source.GetX509SVID()
	if err != nil {
		return false // of a short life
	}
	for _, c := range a.issuer.current() {
		if c.hash() == hash {
			return svid.Certificates[0].CheckSignatureFrom(c.cert) == nil
		}
	}
	t.Fatal("the CA is gone")
	return false
}

// knows waits until somebody trusts a number of CAs.
func knows(t *testing.T, source identity.Source, n int) {
	t.Helper()
	limit := time.After(30 * time.Second)
	for {
		bundle, err := source.GetX509BundleForTrustDomain(td)
		if err != nil {
			t.Fatal(err)
		}
		if len(bundle.X509Authorities()) == n {
			return
		}
		select {
		case <-source.Updated():
		case <-limit:
			t.Fatalf("%d CAs are trusted, want %d", len(bundle.X509Authorities()), n)
		}
	}
}

// A CA takes over from another at the order of root: first everybody trusts it,
// then it signs, in the end the old one is gone. Whoever was away meanwhile comes
// back, also with a token of before.
func TestRotateCA(t *testing.T) {
	t.Parallel() // it mostly waits
	ac := config(t)
	a := run(t, ac)
	ac.ListenOn = "tcp://" + a.ListenAddr().String()
	bc, cc := agentConfig(t, createToken(t, a, "b")), agentConfig(t, createToken(t, a, "c"))
	cc.Node = "c"
	runAgent(t, bc)
	c := runAgent(t, cc)
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	before := createToken(t, a, "d")
	onA, onB := open(t, ac.Socket), open(t, bc.Socket)
	first := a.issuer.signer(time.Now()).hash()

	done, err := RequestRotation(t.Context(), ac.Socket, 0)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(done.Absent, []string{"c"}) {
		t.Errorf("%v are said to be absent, want c", done.Absent)
	}
	if life := time.Until(done.OldTrusted); life < defaultAgentTTL || life > defaultAgentTTL+time.Hour {
		t.Errorf("the old CA is trusted for another %v", life)
	}
	knows(t, onA, 2)
	knows(t, onB, 2)
	for _, source := range []identity.Source{onA, onB} {
		if !signedBy(t, a, source, first) {
			t.Errorf("%s was renewed for no reason", idOf(t, source))
		}
	}
	// They are strangers no more, whoever of them has an SVID of which CA.
	part, err := a.Source(t.Context(), "/node/a/manager")
	if err != nil {
		t.Fatal(err)
	}
	defer part.Close()
	if !signedBy(t, a, part, done.CA) {
		t.Error("the new CA does not sign")
	}
	handshake(t, onB, part)
	handshake(t, part, onB)

	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	a = run(t, ac) // knows it all from its files
	cc.Token = ""
	c = runAgent(t, cc)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	back, err := c.Source(ctx, "/node/c/manager")
	if err != nil {
		t.Fatal(err)
	}
	defer back.Close()
	if !signedBy(t, a, back, done.CA) {
		t.Error("after a restart the new CA does not sign")
	}
	handshake(t, onB, back)
	dc := agentConfig(t, before)
	dc.Node = "d"
	runAgent(t, dc)
	handshake(t, open(t, dc.Socket), onB)
}

// The old CA leaves when nothing of it is left, by itself, and the mesh goes on.
func TestOldCALeaves(t *testing.T) {
	t.Parallel() // it mostly waits
	synced := make(chan struct{})
	ac := config(t)
	ac.TTL, ac.AgentTTL = 4*time.Second, 8*time.Second
	a := run(t, ac)
	bc := agentConfig(t, createToken(t, a, "b"))
	b := runAgent(t, bc)
	part, err := b.Source(t.Context(), "/node/b/manager")
	if err != nil {
		t.Fatal(err)
	}
	defer part.Close()
	onA := open(t, ac.Socket)
	now := time.Now()
	cas, err := a.issuer.replace(now, now, ac.AgentTTL-clockSkew) // the clocks here do not differ
	if err != nil {
		t.Fatal(err)
	}
	newest := cas[1].hash()
	go func() { // the bundles of the authority itself, without looking
		defer close(synced)
		for {
			set, changed := a.issuer.bundles.Current()
			if bundle, _ := set.Get(td); len(bundle.X509Authorities()) == 1 {
				return
			}
			<-changed
		}
	}()
	select {
	case <-synced:
	case <-time.After(time.Minute):
		t.Fatal("the old CA does not leave")
	}
	if left := time.Until(cas[0].leavesAt()); left > 0 {
		t.Errorf("it left %v before its time", left)
	}
	knows(t, onA, 1)
	handshakeOfShortLived(t, part, onA)
	handshakeOfShortLived(t, onA, part)
	if hash := a.issuer.signer(time.Now()).hash(); hash != newest {
		t.Error("somebody else signs")
	}
}

func TestRotateCARefused(t *testing.T) {
	c := config(t)
	a := run(t, c)
	for _, after := range []time.Duration{-time.Second, 1 << 62, caAnnounce + time.Second} {
		if _, err := RequestRotation(t.Context(), c.Socket, after); !errors.Is(err, nserr.BadFlag) {
			t.Errorf("after %v: %v", after, err)
		}
	}
	if got := nobody(t, "rotate", c.Socket); !strings.Contains(got, "NSM-2008") {
		t.Errorf("uid 65534 rotates the CA: %q", got)
	}
	bc := agentConfig(t, createToken(t, a, ""))
	runAgent(t, bc)
	if _, err := RequestRotation(t.Context(), bc.Socket, 0); !errors.Is(err, nserr.NotAllowed) || !strings.Contains(err.Error(), "not on this node") {
		t.Errorf("on another node: %v", err)
	}
	if n := len(a.issuer.current()); n != 1 {
		t.Errorf("%d CAs", n)
	}
	for range maxCAs - 1 {
		if _, err := RequestRotation(t.Context(), c.Socket, time.Hour); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := RequestRotation(t.Context(), c.Socket, time.Hour); !errors.Is(err, nserr.Busy) {
		t.Errorf("one more: %v", err)
	}
}

// A CA that cannot be stored is nobody's.
func TestRotateCACannotWrite(t *testing.T) {
	c := config(t)
	a := run(t, c)
	before := a.issuer.current()
	if err := os.Rename(c.StateDir, c.StateDir+".away"); err != nil {
		t.Fatal(err)
	}
	_, err := a.RotateCA(context.Background(), 0)
	if err := os.Rename(c.StateDir+".away", c.StateDir); err != nil {
		t.Fatal(err)
	}
	if !errors.Is(err, nserr.StateDir) || len(a.issuer.current()) != len(before) {
		t.Errorf("RotateCA() = %v, %d CAs", err, len(a.issuer.current()))
	}
	if bundle, err := a.issuer.bundles.GetX509BundleForTrustDomain(td); err != nil || len(bundle.X509Authorities()) != 1 {
		t.Errorf("%d are trusted, %v", len(bundle.X509Authorities()), err)
	}
}
