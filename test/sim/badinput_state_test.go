// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/sys/unix"

	idsource "github.com/openvwire/nsm/sdk/identity"
	"github.com/openvwire/nsm/sdk/identity/agent"
	domain "github.com/openvwire/nsm/sdk/identity/authority"
	"github.com/openvwire/nsm/sdk/nserr"
)

// badState are the rows about what identities rest on: the directories of the
// authority and of a node that joins.
var badState = []realRow{
	{"authority on a disk that is full", nserr.StateDir, func(t *testing.T, dir string) error {
		disk := newDisk(t, dir)
		defer disk.unmount(t)
		disk.fill(t)
		start := func() error {
			a, err := domain.New(t.Context(), domain.Config{Node: "a", StateDir: disk.dir, Logger: silent})
			if err == nil {
				err = a.Close()
			}
			return err
		}
		err := start()
		disk.free(t)
		if err := start(); err != nil {
			t.Errorf("with room again: %v", err)
		}
		return err
	}},
	{"join token on a disk that is full", nserr.StateDir, func(t *testing.T, dir string) error {
		disk := newDisk(t, dir)
		defer disk.unmount(t)
		a := openDomain(t, disk.dir)
		defer a.Close()
		disk.fill(t)
		_, err := a.CreateToken(t.Context(), "", 0)
		disk.free(t)
		if _, err := a.CreateToken(t.Context(), "", 0); err != nil {
			t.Errorf("with room again: %v", err)
		}
		return err
	}},
	{"CA on a disk that is full", nserr.StateDir, func(t *testing.T, dir string) error {
		disk := newDisk(t, dir)
		defer disk.unmount(t)
		a := openDomain(t, disk.dir)
		defer a.Close()
		disk.fill(t)
		_, err := a.RotateCA(t.Context(), 0)
		if n := trusted(t, a.Source); n != 1 {
			t.Errorf("%d CAs are trusted, want the one that is stored", n)
		}
		disk.free(t)
		if _, err := a.RotateCA(t.Context(), 0); err != nil {
			t.Errorf("with room again: %v", err)
		}
		return err
	}},
	{"join that the authority cannot write down", nserr.StateDir, func(t *testing.T, dir string) error {
		disk := newDisk(t, dir)
		defer disk.unmount(t)
		a := openDomain(t, disk.dir)
		defer a.Close()
		c := agent.Config{Node: "b", StateDir: filepath.Join(dir, "b"), Token: newToken(t, a), Logger: silent}
		disk.fill(t)
		err := join(t, c)
		disk.free(t)
		c.StateDir = filepath.Join(dir, "c") // another machine, with a key of its own: nobody has used the token
		if err := join(t, c); err != nil {
			t.Errorf("with room again: %v", err)
		}
		return err
	}},
	{"membership on a disk that is full", nserr.StateDir, func(t *testing.T, dir string) error {
		disk := newDisk(t, dir)
		defer disk.unmount(t)
		a := openDomain(t, filepath.Join(dir, "a"))
		defer a.Close()
		c := agent.Config{Node: "b", StateDir: disk.dir, Token: newToken(t, a), Logger: silent}
		disk.fill(t)
		err := join(t, c)
		disk.free(t)
		if err := join(t, c); err != nil {
			t.Errorf("with room again: %v", err)
		}
		return err
	}},
}

// A node whose disk is full goes on with what it cannot store, and starts again with
// what it could.
func TestMemberOnFullDisk(t *testing.T) {
	dir := t.TempDir()
	disk := newDisk(t, dir)
	defer disk.unmount(t)
	a := openDomain(t, filepath.Join(dir, "a"))
	defer a.Close()
	c := agent.Config{Node: "b", StateDir: disk.dir, Token: newToken(t, a), Logger: silent}
	b, err := agent.New(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	part, err := b.Source(t.Context(), "/node/b/manager")
	if err != nil {
		t.Fatal(err)
	}
	disk.fill(t)
	if _, err := a.RotateCA(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	<-part.Updated()
	if n := trusted(t, b.Source); n != 2 {
		t.Errorf("%d CAs are trusted", n)
	}
	if err := part.Close(); err != nil {
		t.Error(err)
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	c.Token = ""
	if err := join(t, c); err != nil {
		t.Errorf("started on the full disk: %v", err)
	}
}

// disk is a small file system.
type disk struct{ dir string }

func newDisk(t *testing.T, dir string) disk {
	t.Helper()
	d := disk{filepath.Join(dir, "disk")}
	if err := os.Mkdir(d.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", d.dir, "tmpfs", 0, "size=64k,mode=0700"); err != nil {
		t.Fatal(err)
	}
	return d
}

func (d disk) unmount(t *testing.T) {
	if err := unix.Unmount(d.dir, 0); err != nil {
		t.Errorf("something is left open in %s: %v", d.dir, err)
	}
}

func (d disk) fill(t *testing.T) { fill(t, filepath.Join(d.dir, "filler")) }

func (d disk) free(t *testing.T) {
	if err := os.Remove(filepath.Join(d.dir, "filler")); err != nil {
		t.Error(err)
	}
}

// openDomain opens an authority that nodes can join.
func openDomain(t *testing.T, dir string) *domain.Authority {
	t.Helper()
	a, err := domain.New(t.Context(), domain.Config{Node: "a", StateDir: dir, ListenOn: "tcp://127.0.0.1:0", Logger: silent})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func newToken(t *testing.T, a *domain.Authority) string {
	t.Helper()
	token, err := a.CreateToken(t.Context(), "", 0)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// join starts the agent of a node and uses it once.
func join(t *testing.T, c agent.Config) error {
	b, err := agent.New(t.Context(), c)
	if err != nil {
		return err
	}
	defer b.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	part, err := b.Source(ctx, "/node/b/manager")
	if err != nil {
		return err
	}
	return part.Close()
}

// trusted returns how many CAs a new part of a node trusts.
func trusted(t *testing.T, open func(context.Context, string) (idsource.Source, error)) int {
	t.Helper()
	source, err := open(t.Context(), "/node/b/registry")
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	bundle, err := source.GetX509BundleForTrustDomain(spiffeid.RequireTrustDomainFromString(idsource.DefaultTrustDomain))
	if err != nil {
		t.Fatal(err)
	}
	return len(bundle.X509Authorities())
}
