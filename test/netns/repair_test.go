// SPDX-License-Identifier: Apache-2.0

package netns_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/openvwire/nsm/forwarder/plan"
	"github.com/openvwire/nsm/internal/lab"
)

// What somebody else does to a wire is repaired, and said once with what was found; a
// link that bears the forwarder's name and belongs to no wire is removed.
func TestRepair(t *testing.T) {
	t.Parallel() // it mostly waits
	needTUN(t)
	const life = 4 * time.Second // of tokens, within which links may be claimed
	l := newMesh(t, lab.Config{Env: []string{"NSM_RECONCILE=100ms", "NSM_MAX_TOKEN_LIFETIME=" + life.String()}})
	a, b := l.Node("a"), l.Node("b")
	serve(t, workload(t, a, "near"), "near", "--cidr", "10.60.1.0/24")
	serve(t, workload(t, b, "far"), "far", "--cidr", "10.60.2.0/24")
	serve(t, workload(t, b, "lan"), "lan", "--cidr", "10.60.3.0/24", "--payload", "ETHERNET")
	unchanged(t, l)

	forwarder := l.Daemon("a", "forwarder")
	repaired := func(connection string) (n int) {
		for line := range strings.Lines(forwarder.Output()) {
			if strings.Contains(line, "wire repaired") && strings.Contains(line, connection) {
				n++
			}
		}
		return n
	}
	for _, service := range []string{"near", "far", "lan"} {
		ns := workload(t, a, service+"-client")
		// Whoever pings through the wire is quicker, and asks for another path.
		connect(t, ns, "kernel://"+service+"/nsm-1", "--name", service, "--liveness-check=false")
		tag, before := wireLink(t, ns)
		for i, damage := range []struct {
			name, says string
			do         func(netlink.Link) error
		}{
			{"ip link del", "link add", netlink.LinkDel},
			{"ip addr flush", "address add", flushAddresses},
			{"ip link set down", "link set nsm-1 up", netlink.LinkSetDown},
		} {
			err := ns.Do(func() error {
				link, err := netlink.LinkByName("nsm-1")
				if err != nil {
					return err
				}
				return damage.do(link)
			})
			if err != nil {
				t.Fatalf("%s: %s: %v", service, damage.name, err)
			}
			eventually(t, 10*time.Second, func() error {
				if n := repaired(tag.ID); n != i+1 {
					return fmt.Errorf("%s: %s: said %d times that the wire was repaired", service, damage.name, n)
				}
				if _, now := wireLink(t, ns); now != before {
					return fmt.Errorf("%s: %s: the wire has %s, it had %s", service, damage.name, now, before)
				}
				return nil
			})
			if says := strings.Count(forwarder.Output(), damage.says); says == 0 {
				t.Errorf("%s: %s: %q is not said", service, damage.name, damage.says)
			}
			if n := repaired(tag.ID); n != i+1 {
				t.Errorf("%s: %s: said %d times", service, damage.name, n)
			}
		}
		left := workload(t, a, service+"-left")
		leave(t, left, plan.Tag{Owner: tag.Owner, ID: "nobody-" + service, Side: plan.Client})
		leave(t, left, plan.Tag{Owner: "another", ID: "nobody-" + service, Side: plan.Client})
		eventually(t, 30*time.Second, func() error {
			if links, err := left.Links(); err != nil || len(links) != 3 {
				return errors.Join(err, fmt.Errorf("links %v, want lo and both of another's", links))
			}
			return nil
		})
	}
}

// wireLink returns the tag of nsm-1 and all that is to be repaired of it, as text.
func wireLink(t *testing.T, ns *lab.NetNS) (tag plan.Tag, state string) {
	t.Helper()
	err := ns.Do(func() error {
		link, err := netlink.LinkByName("nsm-1")
		if err != nil {
			state = err.Error()
			return nil
		}
		tag, _ = plan.ParseTag(link.Attrs().Alias)
		addrs, err := netlink.AddrList(link, netlink.FAMILY_V4)
		if err != nil {
			return err
		}
		for _, a := range addrs {
			state += a.IPNet.String() + " "
		}
		routes, err := netlink.RouteList(link, netlink.FAMILY_V4)
		for _, r := range routes {
			state += "to " + r.Dst.String() + " "
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return tag, state
}

func flushAddresses(link netlink.Link) error {
	addrs, err := netlink.AddrList(link, netlink.FAMILY_V4)
	for _, a := range addrs {
		err = errors.Join(err, netlink.AddrDel(link, &a))
	}
	return err
}

// leave makes a link that looks like the end of a wire.
func leave(t *testing.T, ns *lab.NetNS, tag plan.Tag) {
	t.Helper()
	err := ns.Do(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "left-" + tag.Owner[:1]
		link := &netlink.Veth{LinkAttrs: attrs, PeerName: "peer-" + tag.Owner[:1]}
		if err := netlink.LinkAdd(link); err != nil {
			return err
		}
		return netlink.LinkSetAlias(link, tag.String())
	})
	if err != nil {
		t.Fatal(err)
	}
}
