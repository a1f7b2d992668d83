// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"fmt"
	"net"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// State returns what the kernel has in all namespaces of the lab, sorted, one
// object per line: links, addresses, routes, rules and permanent neighbours. The
// table "local" is left out: the kernel derives it from the addresses, some time
// later. A namespace without a name is called by a process in it.
func (l *Lab) State() (lines []string, err error) {
	err = l.eachNamespace(func(name string) error {
		in, err := stateHere()
		for _, line := range in {
			lines = append(lines, name+": "+line)
		}
		return err
	})
	slices.Sort(lines)
	return lines, err
}

// State returns what the kernel has in the namespace, as [Lab.State].
func (ns *NetNS) State() (lines []string, err error) {
	err = ns.Do(func() error {
		lines, err = stateHere()
		return err
	})
	slices.Sort(lines)
	return lines, err
}

// stateHere describes the thread's namespace.
func stateHere() (lines []string, err error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, err
	}
	names := map[int]string{0: "-"}
	for _, link := range links {
		a := link.Attrs()
		names[a.Index] = a.Name
		lines = append(lines, fmt.Sprintf("link %s %s mtu %d up %t alias %q", a.Name, link.Type(), a.MTU, a.Flags&net.FlagUp != 0, a.Alias))
	}
	addrs, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, err
	}
	for _, addr := range addrs {
		lines = append(lines, fmt.Sprintf("address %s dev %s", addr.IPNet, names[addr.LinkIndex]))
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		more, err := routingHere(family, names)
		if err != nil {
			return nil, err
		}
		lines = append(lines, more...)
	}
	return lines, nil
}

func routingHere(family int, names map[int]string) (lines []string, err error) {
	routes, err := netlink.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return nil, err
	}
	for _, r := range routes {
		if r.Table == unix.RT_TABLE_LOCAL {
			continue
		}
		lines = append(lines, strings.TrimSpace(fmt.Sprintf("route %v via %v dev %s table %d", r.Dst, r.Gw, names[r.LinkIndex], r.Table)))
	}
	rules, err := netlink.RuleList(family)
	if err != nil {
		return nil, err
	}
	for _, r := range rules {
		lines = append(lines, fmt.Sprintf("rule %d from %v to %v table %d ipproto %d sport %v dport %v", r.Priority, r.Src, r.Dst, r.Table, r.IPProto, r.Sport, r.Dport))
	}
	neighbours, err := netlink.NeighList(0, family)
	if err != nil {
		return nil, err
	}
	for _, n := range neighbours {
		if n.State&netlink.NUD_PERMANENT != 0 {
			lines = append(lines, fmt.Sprintf("neighbour %s lladdr %s dev %s", n.IP, n.HardwareAddr, names[n.LinkIndex]))
		}
	}
	return lines, nil
}
