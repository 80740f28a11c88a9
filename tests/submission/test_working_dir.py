"""What travels to a cluster with a job: files, and variables of the environment."""

import shutil
import zipfile
from pathlib import Path

import pytest

from mnist_ray.errors import ConfigError
from mnist_ray.submission.submit import job_environment, stage_working_dir


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    files = {
        "mnist_ray/__init__.py": "",
        "mnist_ray/data/idx.py": "",
        "mnist_ray/notes.txt": "",
        "mnist_ray/report/templates/report.html": "",
        "mnist_ray/saved.html": "",
        "mnist_ray/__pycache__/a.pyc": "",
        "mnist_ray/.venv/lib.py": "",
        "jobs/train.py": "",
        "jobs/.env": "AWS_SECRET_ACCESS_KEY=x",
        ".env": "AWS_SECRET_ACCESS_KEY=x",
        ".git/config": "",
        "results/predictions.parquet": "",
        "setup.py": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "mnist_ray" / "link.py").symlink_to(tmp_path / ".env")
    return tmp_path


def _names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_only_the_code_of_the_package_and_the_jobs_and_the_template_of_the_report_travel(checkout: Path) -> None:
    with stage_working_dir("epochs: 3\n", package=checkout / "mnist_ray") as folder:
        assert _names(folder) == [
            "job.yaml",
            "jobs/train.py",
            "mnist_ray/__init__.py",
            "mnist_ray/data/idx.py",
            "mnist_ray/report/templates/report.html",
        ]
        assert (folder / "job.yaml").read_text() == "epochs: 3\n"
    assert not folder.exists()


def test_this_very_package_travels_with_its_template() -> None:
    with stage_working_dir() as folder:
        assert (folder / "mnist_ray" / "report" / "templates" / "report.html").is_file()
        assert (folder / "jobs" / "evaluate.py").is_file()


def test_an_installed_package_ships_its_own_copy_of_the_jobs(checkout: Path) -> None:
    (checkout / "mnist_ray" / "_jobs").mkdir()
    (checkout / "mnist_ray" / "_jobs" / "tune.py").touch()
    with stage_working_dir(package=checkout / "mnist_ray") as folder:
        assert [path.name for path in (folder / "jobs").iterdir()] == ["tune.py"]


def test_a_package_without_its_jobs_is_not_shipped(checkout: Path, tmp_path: Path) -> None:
    with (
        pytest.raises(FileNotFoundError, match=r"nowhere: no \*\.py file"),
        stage_working_dir(package=checkout / "mnist_ray", jobs=tmp_path / "nowhere"),
    ):
        pass


def test_a_folder_too_large_for_the_dashboard_is_refused(checkout: Path) -> None:
    (checkout / "jobs" / "large.py").write_bytes(b"#" * ((20 << 20) + 1))
    with (
        pytest.raises(ConfigError, match="job files: 20971521 bytes; the code and config of a job must stay"),
        stage_working_dir(package=checkout / "mnist_ray"),
    ):
        pass


def test_of_a_checkout_that_ray_itself_uploads_secrets_and_history_stay_behind(tmp_path: Path) -> None:
    from ray._private.runtime_env.packaging import create_package

    checkout = tmp_path / "checkout"
    kept = ["jobs/train.py", "mnist_ray/__init__.py", "mnist_ray/report/templates/report.html"]
    secrets = [".env", ".env.local", ".git/config", ".aws/credentials", ".ssh/config", "id_ed25519", "deploy/a.pem"]
    secrets += ["tls.key", "auth_token", ".venv/lib.py", "jobs/.env", "results/runs/a/config.json"]
    for name in [*kept, *secrets]:
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).touch()
    for name in (".gitignore", ".rayignore"):
        shutil.copy(Path(__file__).parents[2] / name, checkout)
    # As `ray job submit --working-dir .` does.
    create_package(str(checkout), tmp_path / "package.zip", include_gitignore=True)
    with zipfile.ZipFile(tmp_path / "package.zip") as package:
        assert sorted(name for name in package.namelist() if not name.endswith("/")) == [
            ".gitignore",
            ".rayignore",
            *kept,
        ]


def test_keys_and_tokens_stay_behind() -> None:
    environ = {
        "AWS_ENDPOINT_URL": "http://storage:9000",
        "AWS_REGION": "eu-central-1",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_SESSION_TOKEN": "session",
        "RAY_AUTH_TOKEN": "token",
        "MLFLOW_TRACKING_URI": "https://mlflow.example",
        "MLFLOW_TRACKING_PASSWORD": "password",
        "MNIST_RAY_DATA": "/data",
        "OMP_NUM_THREADS": "64",
        "HOME": "/home/me",
    }
    assert job_environment(environ) == {
        "AWS_ENDPOINT_URL": "http://storage:9000",
        "AWS_REGION": "eu-central-1",
        "MLFLOW_TRACKING_URI": "https://mlflow.example",
        "MNIST_RAY_DATA": "/data",
        "OMP_NUM_THREADS": "1",
        "PYTHONIOENCODING": "utf-8:backslashreplace",
    }


@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL", "MLFLOW_TRACKING_URI"])
def test_an_endpoint_with_credentials_is_refused_and_not_shown(name: str) -> None:
    with pytest.raises(ConfigError, match=name) as caught:
        job_environment({name: "http://me:hunter2@storage:9000"})
    assert "hunter2" not in str(caught.value)
