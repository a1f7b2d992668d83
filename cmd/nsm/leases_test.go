// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/openvwire/nsm/sdk/ipam"
	"github.com/openvwire/nsm/sdk/nserr"
)

func TestWhereLeasesAre(t *testing.T) {
	pool, err := ipam.New([][]netip.Prefix{{netip.MustParsePrefix("10.0.0.0/24")}})
	if err != nil {
		t.Fatal(err)
	}
	home, dir := t.TempDir(), filepath.Join(t.TempDir(), "state")
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name  string
		dir   string
		home  string // XDG_STATE_HOME
		where string // the file; "" = none
		fails bool
	}{
		{"named", dir, home, filepath.Join(dir, "db%2F1.leases"), false},
		{"by default", "", home, filepath.Join(home, "nsm/serve/db%2F1.leases"), false},
		{"none", "none", home, "", false},
		{"a default that cannot be used", "", file, "", false},
		{"a named one that cannot be used", file, home, "", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv("XDG_STATE_HOME", tt.home)
			leases, err := openLeases(tt.dir, "db/1", pool)
			if tt.fails != errors.Is(err, nserr.StateDir) || !tt.fails && err != nil || (leases == nil) != (tt.where == "") {
				t.Fatalf("leases %v, error %v", leases, err)
			}
			if leases == nil {
				return
			}
			defer leases.Close()
			if _, err := os.Stat(tt.where); err != nil {
				t.Error(err)
			}
		})
	}
}

// What nobody has used for days goes, what is in use stays however old it is.
func TestOldLeasesGo(t *testing.T) {
	pool, err := ipam.New([][]netip.Prefix{{netip.MustParsePrefix("10.0.0.0/24")}})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, name := range []string{"gone", "used", "new"} {
		leases, err := openLeases(dir, name, pool)
		if err != nil {
			t.Fatal(err)
		}
		if name != "used" {
			leases.Close()
		} else {
			defer leases.Close()
		}
		if name != "new" {
			old := time.Now().Add(-leasesLast - time.Hour)
			if err := os.Chtimes(filepath.Join(dir, name+leaseSuffix), old, old); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "mine"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	removeOldLeases(dir, time.Now())
	for name, want := range map[string]bool{"gone.leases": false, "used.leases": true, "new.leases": true, "mine": true} {
		if _, err := os.Stat(filepath.Join(dir, name)); (err == nil) != want {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A full disk is no reason not to serve, whoever has named the place.
func TestLeasesOnAFullDisk(t *testing.T) {
	pool, err := ipam.New([][]netip.Prefix{{netip.MustParsePrefix("10.0.0.0/24")}})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := unix.Mount("nsm-test", dir, "tmpfs", 0, "size=16k"); err != nil {
		t.Skipf("mounting a small tmpfs: %v", err)
	}
	defer func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	}()
	if err := os.WriteFile(filepath.Join(dir, "ballast"), make([]byte, 1<<20), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("the disk is not full: %v", err)
	}
	for _, place := range []string{dir, filepath.Join(dir, "serve")} {
		leases, err := openLeases(place, "db", pool)
		if err != nil {
			t.Errorf("%s: %v", place, err)
		}
		if leases != nil {
			leases.Close()
			t.Errorf("%s: a lease file on a full disk", place)
		}
	}
}
