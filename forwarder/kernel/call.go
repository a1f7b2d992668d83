// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/openvwire/nsm/forwarder/netns"
	"github.com/openvwire/nsm/forwarder/plan"
	"github.com/openvwire/nsm/sdk/nserr"
)

// call is one Apply, Observe or Remove: the wire and an open site for each
// namespace that it touches. It is used by one goroutine.
type call struct {
	ctx   context.Context // of this call, which it does not outlive
	k     *Kernel
	wire  plan.Wire
	sites map[string]*site // by namespace key; the underlay's under ""
	brief bool             // observe only what plan.Removal needs
	look  *look            // the wire is only looked at, as one of many; nil: it is not

	unsettled []plan.Step // executed, see settle
}

// site is a namespace as one call works with it.
type site struct {
	ns     *netns.Handle
	nl     *netlink.Handle
	view   view
	reader *reader // that the view is, if it is what is there now
	ctl    int     // datagram socket for ioctls, -1: none, as in a brief call

	ipv6 bool // the wire has something of IPv6 here

	// localRoutes reports IPv6 addresses that became usable; nil unless ipv6.
	localRoutes *nl.NetlinkSocket

	known      *known
	ends       map[plan.Side]located // of the wire, as found when the site was read
	pingClosed bool
	newIPv6Off bool            // of links to come
	ipv6Off    map[string]bool // of the wire's links that exist, by name
	index      map[string]int  // of the wire's links, by name; filled in as needed
}

// open opens the wire's namespaces. The caller closes the call.
func (k *Kernel) open(ctx context.Context, w plan.Wire, brief bool) (*call, error) {
	c := &call{ctx: ctx, k: k, wire: w, sites: make(map[string]*site), brief: brief}
	for _, e := range w.Ends {
		if _, ok := c.sites[e.NetNS]; ok {
			continue
		}
		ns, err := k.namespaces.Get(e.NetNS)
		if err != nil {
			c.close()
			return nil, err
		}
		s := &site{ns: ns, ctl: -1, known: k.known(ns)}
		c.sites[e.NetNS] = s
		if err := ns.Do(func() error { return s.enter(k, w, brief) }); err != nil {
			c.close()
			return nil, unprivileged(err, "open namespace "+e.NetNS)
		}
	}
	return c, nil
}

// enter opens the site's sockets and reads what needs a thread inside.
func (s *site) enter(k *Kernel, w plan.Wire, brief bool) (err error) {
	if s.nl, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
		return err
	}
	if s.reader, err = k.newReader(); err != nil {
		return err
	}
	s.view = s.reader
	if brief {
		return s.read(w)
	}
	if s.ctl, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
		return err
	}
	if s.ipv6 = hasIPv6(w, s.ns.Key()); s.ipv6 {
		if s.localRoutes, err = nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_IPV6_ROUTE); err != nil {
			return err
		}
	}
	return s.read(w)
}

// read finds the links and reads sysctls. It runs inside the namespace.
func (s *site) read(w plan.Wire) error {
	s.ends = make(map[plan.Side]located)
	s.index = make(map[string]int)
	s.ipv6Off = make(map[string]bool)
	for _, e := range w.Ends {
		if e.NetNS != s.ns.Key() {
			continue
		}
		found, err := s.locate(w, e)
		if err != nil {
			return err
		}
		s.ends[e.Side] = found
		for _, l := range []netlink.Link{found.link, found.aside} {
			if l != nil {
				a := l.Attrs()
				s.index[a.Name] = a.Index
				s.ipv6Off[a.Name] = s.ipv6 && readSysctl("net/ipv6/conf/"+a.Name+"/disable_ipv6") == "1"
			}
		}
	}
	s.newIPv6Off = s.ipv6 && readSysctl("net/ipv6/conf/default/disable_ipv6") == "1"
	s.pingClosed = s.ctl >= 0 && s.known.pingClosed()
	return nil
}

// pingClosed reports whether nobody may open ping sockets. It runs inside the namespace.
func (k *known) pingClosed() bool {
	if k.pingOpen.Load() {
		return false
	}
	closed := readSysctl("net/ipv4/ping_group_range") == "1\t0"
	k.pingOpen.Store(!closed)
	return closed
}

// reload reads all sites again.
func (c *call) reload() error {
	for key, s := range c.sites {
		if key == "" { // the underlay's
			continue
		}
		if err := s.ns.Do(func() error { return s.read(c.wire) }); err != nil {
			return err
		}
	}
	return nil
}

// underlay returns the site that tunnels are made from.
func (c *call) underlay() (*site, error) {
	if s, ok := c.sites[""]; ok {
		return s, nil
	}
	s := &site{ns: c.k.underlay, ctl: -1}
	err := s.ns.Do(func() (err error) {
		s.nl, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	})
	if err != nil {
		return nil, err
	}
	c.sites[""] = s
	return s, nil
}

// known returns what k remembers of a namespace. It goes with the handle.
func (k *Kernel) known(ns *netns.Handle) *known {
	return ns.Note(k, func() any { return newKnown() }).(*known)
}

func (c *call) close() {
	for _, s := range c.sites {
		if s.nl != nil {
			s.nl.Close()
		}
		if s.reader != nil {
			s.reader.close()
		}
		if s.ctl >= 0 {
			unix.Close(s.ctl)
		}
		if s.localRoutes != nil {
			s.localRoutes.Close()
		}
	}
}

// linkIndex returns the index of one of the wire's links.
func (s *site) linkIndex(name string) (int, error) {
	if i, ok := s.index[name]; ok {
		return i, nil
	}
	l, err := s.nl.LinkByName(name)
	if err != nil {
		return 0, err
	}
	s.index[name] = l.Attrs().Index
	return l.Attrs().Index, nil
}

// hasIPv6 reports whether the wire has anything of IPv6 in a namespace.
func hasIPv6(w plan.Wire, key string) bool {
	return slices.ContainsFunc(w.Ends, func(e plan.End) bool { return e.NetNS == key && e.NeedsIPv6() })
}

// readSysctl reads a short value below /proc/sys as the thread's namespace sees
// it. What cannot be read is empty: a kernel without IPv6 has no such files.
func readSysctl(path string) string {
	fd, err := unix.Open("/proc/sys/"+path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return ""
	}
	defer unix.Close(fd)
	var buf [64]byte
	n, err := unix.Read(fd, buf[:])
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(buf[:n]))
}

// dump lists something until it got a consistent list: the kernel flags a dump
// during which somebody else made a change.
func dump[T any](list func() ([]T, error)) ([]T, error) {
	const attempts = 20
	for i := 1; ; i++ {
		l, err := list()
		if !errors.Is(err, netlink.ErrDumpInterrupted) || i == attempts {
			return l, err
		}
	}
}

// unprivileged turns a lack of privileges into its reason.
func unprivileged(err error, what string) error {
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
		return nserr.NotPrivileged.Errorf("%s: %w", what, err)
	}
	if coded := (*nserr.Error)(nil); errors.As(err, &coded) {
		return err
	}
	return nserr.KernelFailed.Errorf("%s: %w", what, err)
}
