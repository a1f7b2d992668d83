// SPDX-License-Identifier: Apache-2.0

package netns_test

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"

	"github.com/openvwire/nsm/internal/lab"
	"github.com/openvwire/nsm/sdk/identity"
	"github.com/openvwire/nsm/sdk/identity/jointoken"
)

// ping sends datagrams through a wire, one after the other, and waits a second for
// each to come back, until stop tells how many did not.
func ping(t *testing.T, from, to *lab.NetNS, at netip.Addr) (stop func() (sent, lost int)) {
	t.Helper()
	open := func(ns *lab.NetNS, address string) (c net.PacketConn) {
		t.Helper()
		if err := ns.Do(func() (err error) { c, err = net.ListenPacket("udp", address); return err }); err != nil {
			t.Fatal(err)
		}
		return c
	}
	echo, sender := open(to, netip.AddrPortFrom(at, 0).String()), open(from, ":0")
	var running sync.WaitGroup
	running.Go(func() {
		packet := make([]byte, 8)
		for {
			n, from, err := echo.ReadFrom(packet)
			if err != nil {
				return
			}
			_, _ = echo.WriteTo(packet[:n], from) // what is lost is counted
		}
	})
	end := make(chan struct{})
	var sent, lost int
	running.Go(func() {
		defer echo.Close()
		defer sender.Close()
		packet := make([]byte, 8)
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-end:
				return
			case <-tick.C:
			}
			sent++
			binary.BigEndian.PutUint64(packet, uint64(sent))
			_, err := sender.WriteTo(packet, echo.LocalAddr())
			_ = sender.SetReadDeadline(time.Now().Add(time.Second))
			for back := 0; err == nil && back != sent; back = int(binary.BigEndian.Uint64(packet)) {
				_, _, err = sender.ReadFrom(packet)
			}
			if err != nil {
				lost++
			}
		}
	})
	stop = sync.OnceValues(func() (int, int) {
		close(end)
		running.Wait()
		return sent, lost
	})
	t.Cleanup(func() { stop() })
	return stop
}

// shownBy returns the certificate that the manager of a node shows to somebody.
func shownBy(n *lab.Node, to identity.Source) (*x509.Certificate, error) {
	config := tlsconfig.MTLSClientConfig(to, to, tlsconfig.AuthorizeAny())
	config.NextProtos = []string{"h2"}
	raw, err := dial(n.NetNS, netip.AddrPortFrom(n.Addr, 5001).String())
	if err != nil {
		return nil, err
	}
	c := tls.Client(raw, config)
	defer c.Close()
	if err := c.Handshake(); err != nil {
		return nil, err
	}
	return c.ConnectionState().PeerCertificates[0], nil
}

// The CA is replaced while wires carry packets and are refreshed: nothing is lost,
// not while old and new identities meet and not when all are of the new CA.
func TestRotateCA(t *testing.T) {
	t.Parallel() // it mostly waits
	l := newLab(t, lab.Config{})
	a, b := l.Node("a"), l.Node("b")
	if _, err := a.Start(t.Context(), "up", "--svid-ttl", "1m"); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Start(t.Context(), "up", "--join", token(t, a, func(*jointoken.Token) {})); err != nil {
		t.Fatal(err)
	}
	unchanged(t, l)
	server, near := workload(t, a, "db"), workload(t, a, "app")
	client, late := workload(t, b, "web"), workload(t, b, "late")
	serve(t, server, "db", "--cidr", "10.60.0.0/24", "--payload", "ETHERNET")
	args := []string{"kernel://db/nsm-1", "--max-token-lifetime", "20s"} // refreshed all the time
	onA := connect(t, near, append(args, "--name", "near")...)
	onB := connect(t, client, append(args, "--name", "far")...)
	before := getWire(t, b, "far-0")
	nearPing, farPing := ping(t, near, server, onA.far[0]), ping(t, client, server, onB.far[0])

	out, err := a.Nsm(t.Context(), "rotate", "ca", "--after", "2s", "-o", "json")
	if err != nil {
		t.Fatal(err)
	}
	var rotation struct {
		CA     string
		Absent []string
	}
	if err := json.Unmarshal([]byte(out), &rotation); err != nil {
		t.Fatal(err)
	}
	if len(rotation.Absent) > 0 {
		t.Errorf("%v are absent", rotation.Absent)
	}
	// Whoever comes meanwhile, with an identity of the one CA or the other, gets a wire.
	sources := []identity.Source{openIdentity(t, a), openIdentity(t, b)}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	deadline := time.Now().Add(90 * time.Second)
	for newcomers := 0; ; newcomers++ {
		err := errors.Join(ofCA(a, sources[0], rotation.CA), ofCA(b, sources[1], rotation.CA))
		w := connect(t, late, "kernel://db/nsm-1", "--name", fmt.Sprint("late-", newcomers))
		if err := errors.Join(transfer(late, server, w.far[0]), w.client.Stop()); err != nil {
			t.Error(err)
		}
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		<-tick.C
	}
	for name, stop := range map[string]func() (int, int){"on the node": nearPing, "between nodes": farPing} {
		if sent, lost := stop(); lost > 0 || sent == 0 {
			t.Errorf("the wire %s has lost %d of %d datagrams", name, lost, sent)
		}
	}
	after := getWire(t, b, "far-0")
	if after.ID != before.ID || after.State != "WIRE_STATE_UP" || !after.Expires.After(before.Expires) {
		t.Errorf("the wire is %+v, was %+v", after, before)
	}
	if _, err := b.Nsm(t.Context(), "rotate", "ca"); exitCode(err) != 4 {
		t.Errorf("on a node without authority: %v", err)
	}
}

// ofCA reports what is not of a CA yet on a node: its manager's identity or that
// of a workload.
func ofCA(n *lab.Node, source identity.Source, ca string) error {
	svid, err := source.GetX509SVID()
	if err != nil {
		return err
	}
	bundle, err := source.GetX509BundleForTrustDomain(svid.ID.TrustDomain())
	if err != nil {
		return err
	}
	manager, err := shownBy(n, source)
	if err != nil {
		return err
	}
	for _, root := range bundle.X509Authorities() {
		if hash := sha256.Sum256(root.Raw); hex.EncodeToString(hash[:]) == ca {
			return errors.Join(svid.Certificates[0].CheckSignatureFrom(root), manager.CheckSignatureFrom(root))
		}
	}
	return fmt.Errorf("node %s does not know CA %s", n.Name, ca)
}
