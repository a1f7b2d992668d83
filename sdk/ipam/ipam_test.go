// SPDX-License-Identifier: Apache-2.0

package ipam_test

import (
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/openvwire/nsm/sdk/ipam"
	"github.com/openvwire/nsm/sdk/nserr"
)

// prefixes reads "10.0.0.0/24 fd00::1"; a bare address is a host prefix.
func prefixes(t testing.TB, s string) []netip.Prefix {
	t.Helper()
	var list []netip.Prefix
	for field := range strings.FieldsSeq(s) {
		if !strings.Contains(field, "/") {
			a := netip.MustParseAddr(field)
			list = append(list, netip.PrefixFrom(a, a.BitLen()))
			continue
		}
		list = append(list, netip.MustParsePrefix(field))
	}
	return list
}

func newPool(t testing.TB, groups string) *ipam.Pool {
	t.Helper()
	g, err := ipam.ParseGroups(groups)
	if err != nil {
		t.Fatal(err)
	}
	p, err := ipam.New(g)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// show prints a lease as "endpoint's > client's", without the /32 and /128
// that every address of a lease must have.
func show(t testing.TB, l ipam.Lease) string {
	t.Helper()
	var sides [2][]string
	for i, list := range [][]netip.Prefix{l.Dst, l.Src} {
		for _, p := range list {
			if !p.IsSingleIP() {
				t.Errorf("leased %v, want a host prefix", p)
			}
			sides[i] = append(sides[i], p.Addr().String())
		}
	}
	return strings.Join(sides[0], " ") + " > " + strings.Join(sides[1], " ")
}

func TestAllocate(t *testing.T) {
	type step struct {
		id       string
		release  bool
		src, dst string // wanted
		excluded string
		want     string
		err      *nserr.Reason
	}
	for _, tt := range []struct {
		name   string
		groups string
		steps  []step
	}{
		{"endpoint even, client odd", "172.16.0.100/31,10.0.0.0/24", []step{
			{id: "a", want: "172.16.0.100 10.0.0.0 > 172.16.0.101 10.0.0.1"},
			{id: "b", err: nserr.AddressesExhausted},
		}},
		{"asked again, the same", "10.0.0.0/24", []step{
			{id: "a", want: "10.0.0.0 > 10.0.0.1"},
			{id: "b", want: "10.0.0.2 > 10.0.0.3"},
			{id: "a", dst: "10.0.0.8", src: "10.0.0.9", want: "10.0.0.0 > 10.0.0.1"},
		}},
		{"released, lowest first", "10.0.0.0/29", []step{
			{id: "a", want: "10.0.0.0 > 10.0.0.1"},
			{id: "b", want: "10.0.0.2 > 10.0.0.3"},
			{id: "c", want: "10.0.0.4 > 10.0.0.5"},
			{id: "b", release: true},
			{id: "b", release: true},
			{id: "d", want: "10.0.0.2 > 10.0.0.3"},
			{id: "e", want: "10.0.0.6 > 10.0.0.7"},
			{id: "f", err: nserr.AddressesExhausted},
		}},
		{"network and broadcast used", "10.0.0.0/30", []step{
			{id: "a", want: "10.0.0.0 > 10.0.0.1"},
			{id: "b", want: "10.0.0.2 > 10.0.0.3"},
		}},
		{"last addresses of the family", "255.255.255.252/30,ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe/127", []step{
			{id: "a", want: "255.255.255.252 ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe > 255.255.255.253 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"},
			{id: "b", err: nserr.AddressesExhausted}, // the second group
			{id: "a", release: true},
			{id: "b", want: "255.255.255.252 ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe > 255.255.255.253 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"},
		}},
		{"second prefix of a group", "[10.0.0.0/31,10.0.9.0/31],[fd00::/64]", []step{
			{id: "a", want: "10.0.0.0 fd00:: > 10.0.0.1 fd00::1"},
			{id: "b", want: "10.0.9.0 fd00::2 > 10.0.9.1 fd00::3"},
			{id: "c", err: nserr.AddressesExhausted},
		}},
		{"a failed group gives nothing away", "10.0.0.0/24,10.0.9.0/31", []step{
			{id: "a", want: "10.0.0.0 10.0.9.0 > 10.0.0.1 10.0.9.1"},
			{id: "b", err: nserr.AddressesExhausted},
			{id: "a", release: true},
			{id: "c", want: "10.0.0.0 10.0.9.0 > 10.0.0.1 10.0.9.1"},
		}},
		{"excluded prefixes", "10.0.0.0/24", []step{
			{id: "a", excluded: "10.0.0.2/31 10.0.0.0 10.0.0.0/29 192.168.0.0/16 fd00::/8", want: "10.0.0.8 > 10.0.0.9"},
			{id: "b", excluded: "10.0.0.1", want: "10.0.0.0 > 10.0.0.2"},
			{id: "c", want: "10.0.0.1 > 10.0.0.3"},
			{id: "d", excluded: "10.0.0.0/8", err: nserr.AddressesExcluded},
			{id: "d", excluded: "0.0.0.0/0", err: nserr.AddressesExcluded},
		}},
		{"an excluded lease moves", "10.0.0.0/29,fd00::/64", []step{
			{id: "a", want: "10.0.0.0 fd00:: > 10.0.0.1 fd00::1"},
			{id: "a", excluded: "10.0.0.1", want: "10.0.0.0 fd00:: > 10.0.0.2 fd00::1"},
			{id: "a", excluded: "10.0.0.0/31", want: "10.0.0.2 fd00:: > 10.0.0.3 fd00::1"},
			{id: "b", want: "10.0.0.0 fd00::2 > 10.0.0.1 fd00::3"},
		}},
		{"an excluded lease with nowhere to go stays", "10.0.0.0/24,10.0.9.0/31", []step{
			{id: "a", want: "10.0.0.0 10.0.9.0 > 10.0.0.1 10.0.9.1"},
			{id: "a", excluded: "10.0.0.0/31 10.0.9.0/31", err: nserr.AddressesExcluded},
			{id: "a", want: "10.0.0.0 10.0.9.0 > 10.0.0.1 10.0.9.1"},
			{id: "b", err: nserr.AddressesExhausted},
			{id: "a", release: true},
			{id: "b", want: "10.0.0.0 10.0.9.0 > 10.0.0.1 10.0.9.1"},
		}},
		{"recovered after a restart", "10.0.0.0/24,fd00::/64", []step{
			{id: "a", dst: "10.0.0.6 fd00::4", src: "10.0.0.9 fd00::5", want: "10.0.0.6 fd00::4 > 10.0.0.9 fd00::5"},
			{id: "b", dst: "10.0.0.6", src: "10.0.0.7", want: "10.0.0.0 fd00:: > 10.0.0.1 fd00::1"}, // .6 is a's
			{id: "c", dst: "10.0.0.2/24", src: "10.0.0.3/24", want: "10.0.0.2 fd00::2 > 10.0.0.3 fd00::3"},
		}},
		{"not recovered", "10.0.0.0/24", []step{
			{id: "a", dst: "192.168.0.1", src: "192.168.0.2", want: "10.0.0.0 > 10.0.0.1"},
			{id: "b", dst: "10.0.0.8", src: "10.0.0.8", want: "10.0.0.2 > 10.0.0.3"},
			{id: "c", dst: "10.0.0.8", want: "10.0.0.4 > 10.0.0.5"},
			{id: "d", dst: "10.0.0.8", src: "10.0.0.9", excluded: "10.0.0.9", want: "10.0.0.6 > 10.0.0.7"},
			{id: "e", dst: "fd00::8 10.0.0.20", src: "10.0.0.21 fd00::9", want: "10.0.0.20 > 10.0.0.21"},
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newPool(t, tt.groups)
			for i, s := range tt.steps {
				if s.release {
					p.Release(s.id)
					continue
				}
				before := p.Leases()
				l, err := p.Allocate(s.id, ipam.Want{Src: prefixes(t, s.src), Dst: prefixes(t, s.dst)}, prefixes(t, s.excluded))
				switch {
				case s.err != nil:
					if !errors.Is(err, s.err) {
						t.Fatalf("step %d: error %v, want %s", i, err, s.err.Code)
					}
					if after := p.Leases(); !reflect.DeepEqual(before, after) {
						t.Errorf("step %d: leases %v after an error, want %v as before", i, after, before)
					}
				case err != nil:
					t.Fatalf("step %d: %v", i, err)
				default:
					if got := show(t, l); got != s.want {
						t.Errorf("step %d: leased %s, want %s", i, got, s.want)
					}
					if !reflect.DeepEqual(p.Leases()[s.id], l) {
						t.Errorf("step %d: Leases() has %v, want %v", i, p.Leases()[s.id], l)
					}
				}
			}
		})
	}
}

func TestErrorsSayWhich(t *testing.T) {
	p := newPool(t, "[10.0.0.0/31,10.1.0.0/31]")
	_, err := p.Allocate("a", ipam.Want{}, prefixes(t, "10.0.0.0/8"))
	for _, part := range []string{"10.0.0.0/31, 10.1.0.0/31", "10.0.0.0/8", "--cidr"} {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("error %v does not say %q", err, part)
		}
	}
}

func TestNewRefuses(t *testing.T) {
	for _, groups := range []string{
		"", "10.0.0.0/32", "fd00::1/128", "10.0.0.0/8,10.1.0.0/16", "[10.0.0.0/24,10.0.0.0/24]",
	} {
		g, err := ipam.ParseGroups(groups)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ipam.New(g); !errors.Is(err, nserr.BadFlag) {
			t.Errorf("New(%q) = %v, want %s", groups, err, nserr.BadFlag.Code)
		}
	}
	if _, err := ipam.New([][]netip.Prefix{{}}); !errors.Is(err, nserr.BadFlag) {
		t.Errorf("New of an empty group = %v, want %s", err, nserr.BadFlag.Code)
	}
}

func TestContains(t *testing.T) {
	p := newPool(t, "[10.0.0.0/24,10.2.0.0/24],fd00::/64")
	for addr, want := range map[string]bool{
		"10.0.0.0": true, "10.2.0.255": true, "10.1.0.0": false, "fd00::ffff": true, "fd00:1::": false,
	} {
		if got := p.Contains(netip.MustParseAddr(addr)); got != want {
			t.Errorf("Contains(%s) = %v, want %v", addr, got, want)
		}
	}
}

func TestConcurrentUse(t *testing.T) {
	p := newPool(t, "10.0.0.0/22")
	var workers sync.WaitGroup
	for w := range 8 {
		workers.Go(func() {
			for i := range 64 {
				id := fmt.Sprint(w, "-", i)
				if _, err := p.Allocate(id, ipam.Want{}, nil); err != nil {
					t.Error(err)
				}
				if i%3 == 0 {
					p.Release(id)
				}
			}
		})
	}
	workers.Wait()
	var seen []netip.Prefix
	for id, l := range p.Leases() {
		for _, a := range slices.Concat(l.Src, l.Dst) {
			if slices.Contains(seen, a) {
				t.Errorf("%v of %s is leased twice", a, id)
			}
			seen = append(seen, a)
		}
	}
	if want := 8 * 42 * 2; len(seen) != want {
		t.Errorf("%d addresses are leased, want %d", len(seen), want)
	}
}

func TestParseGroups(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"", "[]"},
		{"169.254.0.0/16", "[[169.254.0.0/16]]"},
		{"10.0.0.7/24,fd00::1/64", "[[10.0.0.0/24] [fd00::/64]]"},
		{"[10.0.0.0/24],[fd00::/64]", "[[10.0.0.0/24] [fd00::/64]]"},
		{" [10.0.0.0/24, 10.1.0.0/24 ] , 10.2.0.0/24,[ fd00::/64 ]", "[[10.0.0.0/24 10.1.0.0/24] [10.2.0.0/24] [fd00::/64]]"},
	} {
		got, err := ipam.ParseGroups(tt.in)
		if err != nil || fmt.Sprint(got) != tt.want {
			t.Errorf("ParseGroups(%q) = %v, %v, want %s", tt.in, got, err, tt.want)
		}
	}
	for _, in := range []string{
		"10.0.0.0", "10.0.0.0/33", "10.0.0/24", ",", "10.0.0.0/24,", "[10.0.0.0/24", "[10.0.0.0/24],", "[]",
		"10.0.0.0/24]", "[[10.0.0.0/24]]", "[10.0.0.0/24][fd00::/64]", "[10.0.0.0/24,,10.1.0.0/24]", "[10.0.0.0/24]x",
	} {
		if got, err := ipam.ParseGroups(in); !errors.Is(err, nserr.BadFlag) {
			t.Errorf("ParseGroups(%q) = %v, %v, want %s", in, got, err, nserr.BadFlag.Code)
		}
	}
}

func FuzzParseGroups(f *testing.F) {
	for _, s := range []string{"", "10.0.0.0/24", "10.0.0.0/24,fd00::/64", "[10.0.0.0/24,10.1.0.0/24],[fd00::/64]", "[,]", "],["} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		groups, err := ipam.ParseGroups(s)
		if err != nil {
			return
		}
		for _, g := range groups {
			if len(g) == 0 {
				t.Errorf("ParseGroups(%q) has an empty group", s)
			}
			for _, p := range g {
				if !p.IsValid() || p != p.Masked() {
					t.Errorf("ParseGroups(%q) has %v", s, p)
				}
			}
		}
	})
}

// A pool's cost depends on how scattered it is, not on its size.
func BenchmarkAllocate(b *testing.B) {
	for _, bm := range []struct {
		name   string
		leases int
	}{{"empty", 0}, {"100000 leases", 100_000}} {
		b.Run(bm.name, func(b *testing.B) {
			p := newPool(b, "10.0.0.0/8,fd00::/64")
			for i := range bm.leases {
				if _, err := p.Allocate(fmt.Sprint(i), ipam.Want{}, nil); err != nil {
					b.Fatal(err)
				}
			}
			for i := 0; i < bm.leases; i += 2 { // as scattered as can be
				p.Release(fmt.Sprint(i))
			}
			excluded := prefixes(b, "10.96.0.0/12 192.168.0.0/16 fd01::/64")
			for b.Loop() {
				if _, err := p.Allocate("x", ipam.Want{}, excluded); err != nil {
					b.Fatal(err)
				}
				p.Release("x")
			}
		})
	}
}

func TestGroupsAsSetting(t *testing.T) {
	var g ipam.Groups
	if err := g.UnmarshalText([]byte("10.0.0.0/24,fd00::/64")); err != nil || len(g) != 2 {
		t.Errorf("UnmarshalText gave %v, %v", g, err)
	}
	if _, err := ipam.New(g); err != nil {
		t.Error(err)
	}
	if err := g.UnmarshalText([]byte("10.0.0.0")); !errors.Is(err, nserr.BadFlag) {
		t.Errorf("UnmarshalText = %v, want %s", err, nserr.BadFlag.Code)
	}
}
