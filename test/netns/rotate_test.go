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

// pingInterval is the time between two datagrams of ping.
const pingInterval = 5 * time.Millisecond

// ping sends datagrams through a wire until stop tells how many did not come back, within
// a second at last. They are answered in every namespace that the wire may lead to.
func ping(t *testing.T, from *lab.NetNS, at netip.Addr, to ...*lab.NetNS) (stop func() (sent, lost int)) {
	t.Helper()
	open := func(ns *lab.NetNS, port uint16) (c *net.UDPConn) {
		t.Helper()
		if err := ns.Do(func() (err error) { c, err = net.ListenUDP("udp4", &net.UDPAddr{Port: int(port)}); return err }); err != nil {
			t.Fatal(err)
		}
		return c
	}
	port := uint16(0) // any, the same in all
	var answering, asking sync.WaitGroup
	var echoes []*net.UDPConn
	for _, ns := range to {
		echo := open(ns, port)
		port = echo.LocalAddr().(*net.UDPAddr).AddrPort().Port()
		echoes = append(echoes, echo)
		answering.Go(func() {
			packet := make([]byte, 8)
			for {
				n, from, err := echo.ReadFromUDPAddrPort(packet)
				if err != nil {
					return
				}
				_, _ = echo.WriteToUDPAddrPort(packet[:n], from) // what is lost is counted
			}
		})
	}
	asker, end := open(from, 0), make(chan struct{})
	sent, back := 0, make(map[uint64]bool)
	asking.Go(func() {
		packet := make([]byte, 8)
		for {
			if _, _, err := asker.ReadFromUDPAddrPort(packet); err != nil {
				return
			}
			back[binary.BigEndian.Uint64(packet)] = true
		}
	})
	asking.Go(func() {
		tick := time.NewTicker(pingInterval)
		defer tick.Stop()
		for {
			select {
			case <-end:
				_ = asker.SetReadDeadline(time.Now().Add(time.Second))
				return
			case <-tick.C:
			}
			sent++
			_, _ = asker.WriteToUDPAddrPort(binary.BigEndian.AppendUint64(nil, uint64(sent)), netip.AddrPortFrom(at, port))
		}
	})
	stop = sync.OnceValues(func() (int, int) {
		close(end)
		asking.Wait()
		for _, c := range append(echoes, asker) {
			c.Close()
		}
		answering.Wait()
		return sent, sent - len(back)
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
	nearPing, farPing := ping(t, near, onA.far[0], server), ping(t, client, onB.far[0], server)

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
